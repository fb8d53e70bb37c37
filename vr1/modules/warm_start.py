"""Supervised training on the written boxes before the first rollout, in the same run."""

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from vr1.errors import UserError
from vr1.modules.base import DetectionModule
from vr1.prompts import PromptBatch


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """Supervised training before reinforcement learning.

    A model that finds nothing earns no reward and has nothing to learn from. In the first ``steps`` optimizer steps it
    is trained on the true boxes, written as its family writes them (`vr1.modules.sft.SFTModule`); then the rewards take
    over, with the learning rate and the schedule of ``model.optimizer`` and ``model.lr_scheduler`` from their start and
    an optimizer without history.

    Args:
        steps: optimizer steps of supervised training; with ``patience`` the most of them.
        lr: their learning rate; usually several times that of the rewards.
        target_order: order of the boxes in an answer: ``sorted`` by their left edge, or ``annotated``.
        patience: the rewards take over after so many validations in a row whose ``val/map`` is not above the best
            before; validations count from the first that finds something. None makes all ``steps``.

    Raises:
        UserError: a setting outside its range.

    Example:
        >>> WarmStart(steps=100, lr=2e-4).patience is None
        True
    """

    steps: int
    lr: float
    target_order: Literal["annotated", "sorted"] = "sorted"
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"warm_start: steps={self.steps} must be at least 1; leave warm_start out to start without")
        if not self.lr > 0:
            raise UserError(f"warm_start: lr={self.lr} must be above 0")
        if self.patience is not None and self.patience < 1:
            raise UserError(f"warm_start: patience={self.patience} must be at least 1; leave it out to make all steps")


class WarmStartProgress:
    """How far the warm start of a training is: where it ends, and the validations so far.

    Args:
        settings: of the warm start.

    Attributes:
        end: optimizer steps after which the rewards take over, as known so far.

    Example:
        >>> progress = WarmStartProgress(WarmStart(steps=100, lr=2e-4, patience=1))
        >>> for step, value in ((10, 0.0), (20, 0.0), (30, 0.1), (40, 0.2), (50, 0.2)):
        ...     progress.validated(step, value)
        >>> progress.end, progress.covers(49), progress.covers(50)
        (50, True, False)
    """

    def __init__(self, settings: WarmStart) -> None:
        self.settings, self.end = settings, settings.steps
        self._best, self._waited = 0.0, 0

    def covers(self, step: int) -> bool:
        """Whether the optimizer step after ``step`` others is supervised."""
        return step < self.end

    def validated(self, step: int, value: float) -> None:
        """Take the figure of a validation after ``step`` optimizer steps; the warm start may end here."""
        if self.settings.patience is None or not 0 < step < self.end:
            return
        if value > self._best:
            self._best, self._waited = value, 0
        elif self._best > 0:
            self._waited += 1
        if self._waited >= self.settings.patience:
            self.end = step

    def prepare(self, optimizers: Sequence[Optimizer], step: int, rates: Sequence[Sequence[float]]) -> None:
        """Set up the optimizers at the first batch of an optimizer step.

        Args:
            optimizers: those of the training.
            step: optimizer steps taken so far.
            rates: learning rates of their parameter groups for the first step with rewards.
        """
        for optimizer, own in zip(optimizers, rates, strict=True):
            if step == self.end:
                optimizer.state.clear()
            if step <= self.end:
                for group, rate in zip(optimizer.param_groups, own, strict=True):
                    group["lr"] = self.settings.lr if step < self.end else rate

    def state_dict(self) -> dict[str, float]:
        """Plain values for a checkpoint."""
        return {"end": self.end, "best": self._best, "waited": self._waited}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on where a checkpoint was saved; with other ``steps`` than then, these count unless it has ended."""
        self._best, self._waited = float(state["best"]), int(state["waited"])
        self.end = min(int(state["end"]), self.settings.steps)


class WarmStartedModule(DetectionModule, ABC):
    """A module whose training by rewards can begin with supervised steps; a subclass trains in either way.

    Args:
        warm_start: supervised training before the first rollout; None has none.
        **kwargs: settings of `DetectionModule`.
    """

    def __init__(self, warm_start: WarmStart | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.warm_start = None if warm_start is None else WarmStartProgress(warm_start)
        self._rates: list[list[float]] = []

    @property
    def objective(self) -> str:
        """``sft`` in a warm start, then ``grpo``."""
        return "sft" if self.training_state.warm_start else "grpo"

    def configure_optimizers(self) -> Any:
        """As of every module; notes the learning rates at which the rewards begin."""
        configured = super().configure_optimizers()
        optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
        self._rates = [[group["lr"] for group in optimizer.param_groups]]
        return configured

    def on_train_batch_start(self, batch: PromptBatch, batch_idx: int) -> None:
        """As of every module; sets the optimizer up for the warm start, and for the rewards after it."""
        super().on_train_batch_start(batch, batch_idx)
        step = self.trainer.global_step
        self.training_state.warm_start = self.warm_start is not None and self.warm_start.covers(step)
        if self.warm_start is not None and batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.warm_start.prepare(self.trainer.optimizers, step, self._rates)

    def after_validation(self, figures: Mapping[str, Tensor]) -> None:
        """End the warm start where validations no longer improve."""
        if self.warm_start is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self.warm_start.validated(self.trainer.global_step, float(figures["map"]))

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Advance the schedule, which begins after the warm start."""
        if self.warm_start is None or self.trainer.global_step > self.warm_start.end:
            super().lr_scheduler_step(scheduler, metric)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As of every module; also store how far the warm start is."""
        super().on_save_checkpoint(checkpoint)
        if self.warm_start is not None:
            checkpoint["vr1_warm_start"] = self.warm_start.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As of every module; also read how far the warm start is."""
        super().on_load_checkpoint(checkpoint)
        if self.warm_start is not None and "vr1_warm_start" in checkpoint:
            self.warm_start.load_state_dict(checkpoint["vr1_warm_start"])
