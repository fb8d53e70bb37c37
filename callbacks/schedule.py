"""The schedule of :class:`~callbacks.RuleRefinement`: its stages, and when each of them begins."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import lightning.pytorch as pl

from vr1.errors import UserError
from vr1.rewards.base import STAGES, Criterion


def total_steps(trainer: "pl.Trainer") -> int | None:
    """Optimizer steps of the whole training.

    Unlike ``trainer.estimated_stepping_batches``, this only reads: that one sets up the training data, which drops the
    data loader's restored state on resume.

    Args:
        trainer: a trainer in ``fit``, from ``on_train_start`` on, when the training data is set up.

    Returns:
        The smaller of ``max_steps`` and ``max_epochs`` times the optimizer steps of an epoch; None without a limit.
    """
    limits: list[int] = []
    if trainer.max_steps != -1:
        limits.append(trainer.max_steps)
    batches = trainer.num_training_batches
    if trainer.max_epochs not in (None, -1) and math.isfinite(batches):
        assert trainer.max_epochs is not None
        limits.append(trainer.max_epochs * math.ceil(batches / trainer.accumulate_grad_batches))
    return min(limits) if limits else None


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """When a logged metric counts as no longer improving.

    Args:
        monitor: name of a logged metric.
        patience: optimizer steps without an improvement.
        min_delta: a change of at most this much does not count as an improvement.
        window: number of steps over which values are averaged before they are compared, since single steps are noisy.
        mode: whether larger (``max``) or smaller (``min``) values are better.

    Raises:
        UserError: a setting is out of its range.

    Example:
        >>> Plateau(monitor="reward/total", patience=50).window
        10
    """

    monitor: str
    patience: int
    min_delta: float = 0.0
    window: int = 10
    mode: Literal["max", "min"] = "max"

    def __post_init__(self) -> None:
        if not self.monitor:
            raise UserError("on_plateau: monitor is empty: name a logged metric such as 'reward/total'")
        if self.patience < 1:
            raise UserError(f"on_plateau: patience is {self.patience}: give at least 1 optimizer step")
        if self.window < 1:
            raise UserError(f"on_plateau: window is {self.window}: give at least 1 step to average over")
        if not self.min_delta >= 0:
            raise UserError(f"on_plateau: min_delta is {self.min_delta}: give 0 or more")
        if self.mode not in ("max", "min"):
            raise UserError(f"on_plateau: mode is {self.mode!r}: choose 'max' or 'min'")


class PlateauWatch:
    """Watch one metric until it is on a plateau.

    Args:
        plateau: the metric, and when it counts as flat.
        since: optimizer step at which the watch begins.

    Example:
        >>> watch = PlateauWatch(Plateau(monitor="reward/total", patience=2, window=1), since=0)
        >>> [watch.observe(value, step) for step, value in enumerate([1.0, 2.0, 2.0, 2.0], start=1)]
        [False, False, False, True]
    """

    def __init__(self, plateau: Plateau, since: int) -> None:
        self.plateau = plateau
        self.since = since
        self.values: list[float] = []
        self.best: float | None = None
        self.best_step = since

    def observe(self, value: float, step: int) -> bool:
        """Add the value of one optimizer step.

        Args:
            value: of the metric; ignored if it is not finite.
            step: optimizer steps finished.

        Returns:
            Whether the metric is flat now.
        """
        if not math.isfinite(value):
            return False
        self.values = [*self.values, value][-self.plateau.window :]
        if len(self.values) < self.plateau.window:
            return False
        mean = math.fsum(self.values) / len(self.values)
        gain = math.inf if self.best is None else mean - self.best
        if self.best is not None and self.plateau.mode == "min":
            gain = -gain
        if gain > self.plateau.min_delta:
            self.best, self.best_step = mean, step
        return step - self.best_step >= self.plateau.patience

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`observe` depends on, in plain types."""
        return {"since": self.since, "values": self.values, "best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.since, self.best, self.best_step = state["since"], state["best"], state["best_step"]
        self.values = list(state["values"])[-self.plateau.window :]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a schedule: a criterion, and when it begins to apply.

    Args:
        name: unique within a schedule; shown in the progress and in pictures.
        criterion: thresholds of the reward terms during the stage.
        at_fraction: begin at this share of all optimizer steps, between 0 and 1.
        at_step: begin at this optimizer step.
        on_plateau: begin when a logged metric no longer improves.

    Note:
        The first stage begins with training and has none of the three; every later stage has exactly one of them.

    Raises:
        UserError: the name is empty, more than one beginning is given, or one is out of its range.

    Example:
        >>> Stage(name="advanced", criterion=Criterion(0.75, 0.75, 0.9), at_fraction=0.5).at_fraction
        0.5
    """

    name: str
    criterion: Criterion
    at_fraction: float | None = None
    at_step: int | None = None
    on_plateau: Plateau | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError("stage name is empty: give each stage a name")
        beginnings = {"at_fraction": self.at_fraction, "at_step": self.at_step, "on_plateau": self.on_plateau}
        given = [name for name, value in beginnings.items() if value is not None]
        if len(given) > 1:
            raise UserError(f"stage {self.name!r} sets {' and '.join(given)}: set only one of them")
        if self.at_fraction is not None and not 0 <= self.at_fraction <= 1:
            raise UserError(f"stage {self.name!r}: at_fraction is {self.at_fraction}: give a share from 0 to 1")
        if self.at_step is not None and self.at_step < 0:
            raise UserError(f"stage {self.name!r}: at_step is {self.at_step}: give an optimizer step from 0 on")


def paper_stages() -> list[Stage]:
    """The paper's schedule: stricter rules for the second half of training.

    Source: section 3.3 (progressive rule refinement).

    Example:
        >>> [(stage.name, stage.at_fraction) for stage in paper_stages()]
        [('beginner', None), ('advanced', 0.5)]
    """
    return [
        Stage(name="beginner", criterion=STAGES["beginner"]),
        Stage(name="advanced", criterion=STAGES["advanced"], at_fraction=0.5),
    ]


def last_begins_at(stages: Sequence[Stage], share: float) -> list[Stage]:
    """The stages, with another beginning of the last one.

    Args:
        stages: at least two.
        share: of all optimizer steps, between 0 and 1, at which the last stage begins.

    Raises:
        UserError: there is no second stage, or the share is out of its range.

    Example:
        >>> [stage.at_fraction for stage in last_begins_at(paper_stages(), 0.25)]
        [None, 0.25]
    """
    if len(stages) < 2:
        raise UserError(f"switch_at is {share}, but there is no second stage: give two stages, or no switch_at")
    if not 0 <= share <= 1:
        raise UserError(f"switch_at is {share}: give a share of training from 0 to 1")
    return [*stages[:-1], replace(stages[-1], at_fraction=share, at_step=None, on_plateau=None)]


def check_stages(stages: Sequence[Stage]) -> None:
    """Check that names are unique, that the first stage begins at 0, and that the others follow in order.

    Args:
        stages: in the order of the schedule.

    Raises:
        UserError: names the stage and how to fix it.
    """
    for index, stage in enumerate(stages):
        if stage.name in [earlier.name for earlier in stages[:index]]:
            raise UserError(f"two stages are named {stage.name!r}: give each its own name")
        fixed = stage.at_fraction if stage.at_fraction is not None else stage.at_step
        if index == 0 and (stage.on_plateau is not None or fixed):
            raise UserError(
                f"the first stage, {stage.name!r}, begins late: leave its at_fraction, at_step and on_plateau out"
            )
        if index > 0 and fixed is None and stage.on_plateau is None:
            raise UserError(f"stage {stage.name!r} never begins: set at_fraction, at_step or on_plateau")
    for kind in ("at_fraction", "at_step"):
        values = [value for stage in stages if (value := getattr(stage, kind)) is not None]
        if any(later <= earlier for earlier, later in pairwise(values)):
            raise UserError(f"{kind} of the stages is {values}: order the stages so that it increases")


def first_steps(stages: Sequence[Stage], total: int | None) -> list[int | None]:
    """The optimizer step before which each stage begins.

    Args:
        stages: a schedule that :func:`check_stages` accepts.
        total: optimizer steps of the whole training; None without a limit.

    Returns:
        A number per stage; None for a stage that begins on a plateau, or that never begins.

    Raises:
        UserError: a stage begins at a fraction of a training without a limit, or fractions and steps are not in order.

    Example:
        >>> first_steps(paper_stages(), 101)
        [0, 51]
    """
    steps: list[int | None] = []
    for index, stage in enumerate(stages):
        if index == 0:
            steps.append(0)
        elif stage.at_fraction is not None:
            if total is None:
                raise UserError(
                    f"stage {stage.name!r} begins at a fraction of training, but nothing limits the training: set the"
                    " trainer's max_steps (or max_epochs, with data of known length), or give the stage at_step"
                )
            # A rounding error such as 0.07 * 100 = 7.000000000000001 must not delay a stage.
            steps.append(math.ceil(stage.at_fraction * total - 1e-9))
        else:
            steps.append(stage.at_step)
    known = [step for step in steps if step is not None]
    if known != sorted(known):
        raise UserError(
            f"the stages {[stage.name for stage in stages]} begin at steps {steps} of {total}: they must be in order;"
            " move a stage, or give all of them in the same unit"
        )
    # A stage that would begin at the end has no step: the last validation belongs to the stage before.
    return [None if step and total is not None and step >= total else step for step in steps]
