"""Supervised training on the written boxes before the first rollout, in the same run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer

from vr1.errors import UserError


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """Supervised training before reinforcement learning.

    A model that finds nothing earns no reward and has nothing to learn from. In the first ``steps`` optimizer steps it
    is trained on the true boxes, written as its family writes them (`vr1.modules.sft.SFTModule`); then the rewards take
    over, with the learning rate and the schedule of ``model.optimizer`` and ``model.lr_scheduler`` from their start and
    an optimizer without history.

    Args:
        steps: optimizer steps of supervised training.
        lr: their learning rate; usually several times that of the rewards.
        target_order: order of the boxes in an answer: ``sorted`` by their left edge, or ``annotated``.

    Raises:
        UserError: a setting outside its range.

    Example:
        >>> WarmStart(steps=100, lr=2e-4).covers(99), WarmStart(steps=100, lr=2e-4).covers(100)
        (True, False)
    """

    steps: int
    lr: float
    target_order: Literal["annotated", "sorted"] = "sorted"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"warm_start: steps={self.steps} must be at least 1; leave warm_start out to start without")
        if not self.lr > 0:
            raise UserError(f"warm_start: lr={self.lr} must be above 0")

    def covers(self, step: int) -> bool:
        """Whether the optimizer step after ``step`` others is supervised."""
        return step < self.steps

    def prepare(self, optimizers: Sequence[Optimizer], step: int, rates: Sequence[Sequence[float]]) -> None:
        """Set up the optimizers at the first batch of an optimizer step.

        Args:
            optimizers: those of the training.
            step: optimizer steps taken so far.
            rates: learning rates of their parameter groups for the first step with rewards.
        """
        for optimizer, own in zip(optimizers, rates, strict=True):
            if step == self.steps:
                optimizer.state.clear()
            if step <= self.steps:
                for group, rate in zip(optimizer.param_groups, own, strict=True):
                    group["lr"] = self.lr if step < self.steps else rate
