"""How many batches an optimizer step accumulates, also where Lightning's schedule changes that from epoch to epoch."""

import math
from typing import Any

from lightning.pytorch.callbacks import GradientAccumulationScheduler

__all__ = ["batches_left", "batches_of_whole_steps", "batches_per_step"]


def batches_per_step(trainer: Any, epoch: int) -> int:
    """Batches of an optimizer step on each process, in an epoch.

    Args:
        trainer: a Lightning trainer, perhaps with a ``GradientAccumulationScheduler``. That changes the trainer's
            setting when an epoch starts: not yet when loaders are made, and not at all when a run resumes within one.
        epoch: number of the epoch, from 0.
    """
    schedule = _schedule(trainer)
    count: int = trainer.accumulate_grad_batches if schedule is None else schedule.get_accumulate_grad_batches(epoch)
    return count


def batches_of_whole_steps(trainer: Any) -> int:
    """The least number of batches that makes a whole number of optimizer steps in every epoch.

    Args:
        trainer: a Lightning trainer, perhaps with a ``GradientAccumulationScheduler``.
    """
    schedule = _schedule(trainer)
    count: int = trainer.accumulate_grad_batches if schedule is None else math.lcm(*schedule.scheduling.values())
    return count


def batches_left(trainer: Any, batch_idx: int) -> int:
    """Batches of the running optimizer step that are not finished, the present one included.

    Args:
        trainer: a Lightning trainer in training. Where it ends an epoch early, the last step of the epoch is shorter.
        batch_idx: number of the present batch in the epoch.
    """
    count = trainer.accumulate_grad_batches
    return int(min(count - batch_idx % count, trainer.num_training_batches - batch_idx))


def _schedule(trainer: Any) -> GradientAccumulationScheduler | None:
    return next(
        (callback for callback in trainer.callbacks if isinstance(callback, GradientAccumulationScheduler)), None
    )
