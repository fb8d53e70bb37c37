"""Which of the processes that share the data this one is, and what all of them know."""

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
