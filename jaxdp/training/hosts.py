"""Several processes that make one run: `jax.distributed`, what all must agree on, and an end where one hangs.

A process that dies or is stopped is missed by JAX's own heartbeats, which end the others.  One that lives and
does nothing is missed where all must meet: before each pause of the run, and after each checkpoint.
"""

import itertools
import os
import sys

import jax
from jax.experimental import multihost_utils
from jaxtyping import PyTree

PATIENCE = 300  # seconds; of `begin` too
_SECONDS = "JAXDP_PEER_SECONDS"
_meetings = itertools.count()


class PeerError(RuntimeError):
    """Another process of the run did not come."""


def begin(coordinator: str | None, processes: int | None, process: int | None, seconds: int) -> bool:
    """Makes this process one of a run's, by `jax.distributed.initialize`; before any other use of JAX.

    Args:
      coordinator: HOST:PORT of process 0; None takes `JAX_COORDINATOR_ADDRESS`, or where there is none leaves
        the process alone.
      processes: how many; None takes `JAX_NUM_PROCESSES`, or what JAX finds of the cluster.
      process: which of them; None takes `JAX_PROCESS_ID`, or what JAX finds.
      seconds: after which a process that is not heard of is given up.

    Returns:
      Whether it is one of several.

    Raises:
      ValueError: processes without a coordinator, or a coordinator that is not there.
    """
    given = {
        "coordinator_address": coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        "num_processes": _number(processes, "JAX_NUM_PROCESSES"),
        "process_id": _number(process, "JAX_PROCESS_ID"),
    }
    if given["coordinator_address"] is None:
        if processes is not None or process is not None:
            raise ValueError(f"processes={processes}: needs the coordinator, HOST:PORT of process 0")
        return False
    os.environ[_SECONDS] = str(seconds)
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=seconds,
            shutdown_timeout_seconds=seconds,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"coordinator={given['coordinator_address']!r}: {reason}") from error
    return True


def _number(given: int | None, name: str) -> int | None:
    found = os.environ.get(name)
    return given if given is not None or found is None else int(found)


def meet(where: str) -> None:
    """Waits for all processes of the run.

    Raises:
      PeerError: one that does not come, or is gone.
    """
    if jax.process_count() == 1:
        return
    from orbax.checkpoint import multihost

    seconds = int(os.environ.get(_SECONDS, PATIENCE))
    try:
        multihost.sync_global_processes(f"jaxdp {next(_meetings)} {where}", timeout=seconds)
    except Exception as error:  # of the runtime, of many types
        raise PeerError(
            f"process={jax.process_index()} of {jax.process_count()}: another did not come to {where} within "
            f"{seconds} s; go on from the newest checkpoint with --resume, on any number of processes"
        ) from error


def leave(error: PeerError) -> None:
    """Ends this process at once: computations that wait for the missing one never end by themselves."""
    print(f"jaxdp: error: {error}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


def of_first(tree: PyTree) -> PyTree:
    """What process 0 has, on every process."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def on_host(tree: PyTree) -> PyTree:
    """The whole tree where this process can read it, whichever devices it lies on; all processes call it."""

    def whole(leaf):
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return leaf

    return jax.tree.map(whole, tree)
