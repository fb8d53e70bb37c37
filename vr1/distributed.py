"""Processes: the data share of each process, values gathered from all of them, and child processes."""

import signal
import sys
from typing import Any, NamedTuple

# torch is imported where it is used: a sweep, which needs `die_with_parent` alone, need not wait seconds for it.


class Share(NamedTuple):
    """Rank and number of the processes among which the training records are distributed."""

    rank: int
    world: int


def data_share(trainer: Any) -> Share:
    """The share of the data that this process trains on.

    Args:
        trainer: a Lightning trainer. Its strategy decides, not its world size: processes with parts of one model
            (tensor parallelism) see the same data.
    """
    kwargs = trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
    return Share(rank=kwargs["rank"], world=kwargs["num_replicas"])


def is_first() -> bool:
    """Whether this is the first process of the training, or the only one.

    Example:
        >>> is_first()
        True
    """
    import torch.distributed

    started = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not started or torch.distributed.get_rank() == 0


def gather(value: Any) -> list[Any]:
    """The values of all processes in the order of their ranks; to be called by all of them.

    Args:
        value: this process's value, which can be pickled; tensors on the CPU.

    Example:
        >>> gather("alone")
        ['alone']
    """
    import torch.distributed

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def die_with_parent(worker: int = 0) -> None:
    """End this process when its parent ends, even if the parent is killed; on Linux only.

    Used as ``preexec_fn`` of the trials of a sweep, which would otherwise continue next to those that replace them, and
    as ``worker_init_fn`` of data loaders, whose workers would otherwise wait forever.

    Args:
        worker: number of a data loader's worker; unused.
    """
    if sys.platform == "linux":
        import ctypes

        set_signal_of_parents_death = 1
        ctypes.CDLL(None).prctl(set_signal_of_parents_death, signal.SIGKILL)
