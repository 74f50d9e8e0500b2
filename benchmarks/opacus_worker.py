"""Opacus' step in a process of its own, on command: a number and a mode a line in, the seconds out.

The networks are those of `benchmarks.networks`, in PyTorch's layout.
"""

import json
import subprocess
import sys
import time

from benchmarks import malloc

MODES = ("torch nonprivate", "opacus hooks", "opacus ghost")


class Worker:
    """A process that makes steps of one model when asked."""

    def __init__(self, name: str, batch_size: int, environment: dict[str, str]):
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.opacus_worker", name, str(batch_size)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self._commands, self._answers = self.process.stdin, self.process.stdout
        self.failed = json.loads(self._answers.readline())  # mode -> why it does not work

    def seconds(self, mode: str, steps: int = 1) -> float:
        """The time of so many steps, taken in the other process."""
        self._commands.write(f"{steps} {mode}\n")
        self._commands.flush()
        return float(self._answers.readline())

    def close(self) -> None:
        """Ends the process."""
        self._commands.close()
        self.process.wait()


def start(name: str, batch_size: int) -> dict[str, Worker]:
    """One worker for each setting of malloc."""
    environments = {"malloc as it comes": malloc.as_it_comes(), "malloc tuned": malloc.tuned()}
    return {label: Worker(name, batch_size, environment) for label, environment in environments.items()}


def _network(name: str):
    from torch import nn

    if name == "mlp":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(784, 600), nn.ReLU(), nn.Linear(600, 100), nn.ReLU(), nn.Linear(100, 10)
        )
    if name == "cnn":
        return nn.Sequential(
            nn.Conv2d(1, 32, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(1600, 10, bias=False),
        )  # fmt: skip
    layers, channels = [], 3
    for width in (32, 64, 128):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.Tanh()]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 10))


def _step(name: str, batch_size: int, mode: str):
    """A function that makes so many steps, from fresh weights on."""
    import torch
    from opacus import PrivacyEngine

    shape = (3, 32, 32) if name == "cifar" else (1, 28, 28)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, y = torch.rand(batch_size, *shape).to(device), (torch.arange(batch_size) % 10).to(device)
    network, criterion = _network(name).to(device), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    if mode != "torch nonprivate":
        ghost = {"grad_sample_mode": "ghost"} if mode == "opacus ghost" else {}
        dataset = torch.utils.data.TensorDataset(x, y)
        made = PrivacyEngine().make_private(
            module=network, optimizer=optimizer, criterion=criterion, noise_multiplier=6.0, max_grad_norm=4.0,
            data_loader=torch.utils.data.DataLoader(dataset, batch_size=batch_size),
            poisson_sampling=False, **ghost,
        )  # fmt: skip
        network, optimizer = made[:2]
        criterion = made[2] if ghost else criterion

    def step():
        optimizer.zero_grad()
        criterion(network(x), y).backward()
        optimizer.step()

    def steps(count):
        for _ in range(count):
            step()
        if device == "cuda":
            torch.cuda.synchronize()

    return steps


def main(name: str, batch_size: int) -> None:
    """Says which modes work, then makes the steps that each line of the input asks for."""
    steps, failed = {}, {}
    for mode in MODES:
        try:
            steps[mode] = _step(name, batch_size, mode)
            steps[mode](3)
        except Exception as error:  # a peer's failure belongs in the record
            failed[mode] = f"{type(error).__name__}: {error}"
    print(json.dumps(failed), flush=True)
    for line in sys.stdin:
        count, mode = line.strip().split(" ", 1)
        began = time.perf_counter()
        steps[mode](int(count))
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
