"""Processes: the share of the data that each one trains on, values gathered from all, and child processes."""

import signal
import sys
from typing import Any, NamedTuple

import torch.distributed


class Share(NamedTuple):
    """The place of a process among those that divide the training records."""

    rank: int
    world: int


def data_share(trainer: Any) -> Share:
    """The share of the data that this process trains on.

    Args:
        trainer: a Lightning trainer. Its strategy knows better than its world size: processes that hold parts of one
            model see the same data.
    """
    kwargs = trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
    return Share(rank=kwargs["rank"], world=kwargs["num_replicas"])


def gather(value: Any) -> list[Any]:
    """What every process has, in the order of their ranks; to be called on all of them.

    Args:
        value: anything that can be pickled; tensors on the CPU.

    Example:
        >>> gather("alone")
        ['alone']
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def die_with_parent(worker: int = 0) -> None:
    """End this process when its parent ends, even where that is killed; on Linux only.

    As ``preexec_fn`` of a trial, which would train on beside the one that replaces it; as ``worker_init_fn`` of a
    loader, whose workers would wait for ever for somebody to read what they have prepared.

    Args:
        worker: number of a loader's worker, of no importance here.
    """
    if sys.platform == "linux":
        import ctypes

        set_signal_of_parents_death = 1
        ctypes.CDLL(None).prctl(set_signal_of_parents_death, signal.SIGKILL)
