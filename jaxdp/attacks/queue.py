"""Which jobs run in which lanes of an attack."""

import numpy as np


def split(count: int, restarts: int, parts: int) -> list[np.ndarray]:
    """All jobs [n, 2], dealt out in turn."""
    jobs = np.array([(victim, restart) for victim in range(count) for restart in range(restarts)])
    return [jobs[part::parts] for part in range(parts)]


class Queue:
    """Which job (victim, restart) runs in which lane."""

    def __init__(self, jobs: np.ndarray, lanes: int):
        self.jobs = jobs
        self.running = np.full(lanes, -1)
        self.results: list = [None] * len(self.jobs)
        self._next = 0

    def refill(self) -> np.ndarray:
        """Gives the free lanes the next jobs; which lanes got one."""
        free = np.flatnonzero(self.running < 0)[: len(self.jobs) - self._next]
        self.running[free] = np.arange(self._next, self._next + free.size)
        self._next += free.size
        return np.isin(np.arange(self.running.size), free)

    @property
    def idle(self) -> np.ndarray:
        """Lanes without a job."""
        return self.running < 0

    def at(self) -> tuple[np.ndarray, np.ndarray]:
        """Victim and restart of every lane, job 0 standing in where there is none."""
        return tuple(self.jobs[np.maximum(self.running, 0)].T)

    def finish(self, done: np.ndarray, columns) -> None:
        """Takes the results of the lanes that are done, and frees them."""
        for lane in np.flatnonzero(done):
            self.results[self.running[lane]] = [column[lane] for column in columns]
        self.running[done] = -1
