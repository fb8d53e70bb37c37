"""The stages of a rule schedule: the optimizer steps at which they begin, or the plateau of a metric."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import lightning.pytorch as pl

from vr1.errors import UserError
from vr1.rewards.base import STAGES, Criterion


def total_steps(trainer: "pl.Trainer") -> int | None:
    """Optimizer steps from the beginning of training to its end; None where nothing bounds them.

    ``trainer.estimated_stepping_batches`` says the same, but sets the training data up as a side effect, which drops
    the data loader's restored state on resume. This function only reads, so it is of use from ``on_train_start`` on.

    Args:
        trainer: a trainer that is fitting and whose training data is set up.

    Returns:
        The smaller of ``max_steps`` and ``max_epochs`` times the optimizer steps of an epoch.
    """
    bounds: list[int] = []
    if trainer.max_steps != -1:
        bounds.append(trainer.max_steps)
    batches = trainer.num_training_batches
    if trainer.max_epochs not in (None, -1) and math.isfinite(batches):
        assert trainer.max_epochs is not None
        bounds.append(trainer.max_epochs * math.ceil(batches / trainer.accumulate_grad_batches))
    return min(bounds) if bounds else None


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """A logged metric has stopped improving.

    Args:
        monitor: name of a logged metric.
        patience: optimizer steps without an improvement after which the metric counts as flat.
        min_delta: a change of at most this much is no improvement.
        window: how many steps are averaged before values are compared, since rewards of single steps are noisy.
        mode: whether larger (``max``) or smaller (``min``) is better.

    Raises:
        UserError: if a setting is out of its range.

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
    """Follow one metric, value by value, until it is flat.

    Args:
        plateau: what counts as flat.
        since: optimizer step at which watching begins.

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
        """Take the value of one optimizer step in; true when the metric has become flat."""
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
        """All that :meth:`observe` depends on, in plain types."""
        return {"since": self.since, "values": self.values, "best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up watching where a saved watch stood."""
        self.since, self.best, self.best_step = state["since"], state["best"], state["best_step"]
        self.values = list(state["values"])[-self.plateau.window :]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: a criterion and the moment from which on it holds.

    Args:
        name: unique within a schedule; shown in the progress bar and in pictures.
        criterion: thresholds that the reward terms read while the stage is in force.
        at_fraction: begin at this share of all optimizer steps, between 0 and 1.
        at_step: begin at this optimizer step.
        on_plateau: begin when a logged metric has stopped improving.

    Note:
        The first stage begins with training and needs none of the three; every later stage needs exactly one.

    Raises:
        UserError: if the name is empty, several moments are given, or one is out of its range.

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
        moments = {"at_fraction": self.at_fraction, "at_step": self.at_step, "on_plateau": self.on_plateau}
        given = [name for name, value in moments.items() if value is not None]
        if len(given) > 1:
            raise UserError(f"stage {self.name!r} sets {' and '.join(given)}: keep one of them")
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
    """The stages, of which the last begins at another share of training than it says itself.

    Raises:
        UserError: if there is no stage to switch to, or the share is out of its range.

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
    """Refuse a schedule that has no beginning, repeats a name or runs backwards.

    Raises:
        UserError: naming the stage and the mend.
    """
    for index, stage in enumerate(stages):
        if stage.name in [earlier.name for earlier in stages[:index]]:
            raise UserError(f"two stages are named {stage.name!r}: give each its own name")
        fixed = stage.at_fraction if stage.at_fraction is not None else stage.at_step
        if index == 0 and (stage.on_plateau is not None or fixed):
            raise UserError(f"the first stage, {stage.name!r}, begins late: let it begin at 0 (set no moment)")
        if index > 0 and fixed is None and stage.on_plateau is None:
            raise UserError(f"stage {stage.name!r} never begins: set at_fraction, at_step or on_plateau")
    for kind in ("at_fraction", "at_step"):
        moments = [getattr(stage, kind) for stage in stages if getattr(stage, kind) is not None]
        if any(later <= earlier for earlier, later in pairwise(moments)):
            raise UserError(f"{kind} of the stages is {moments}: order the stages so that it increases")


def first_steps(stages: Sequence[Stage], total: int | None) -> list[int | None]:
    """The optimizer step before which each stage begins; None for a stage that waits for a plateau, or never begins.

    Args:
        stages: a checked schedule.
        total: optimizer steps of the whole training, None where nothing bounds them.

    Raises:
        UserError: if a fraction has no total to refer to, or fractions and steps together run backwards.

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
                    f"stage {stage.name!r} begins at a fraction of training, but nothing bounds the training: set the"
                    " trainer's max_steps (or max_epochs, with data of known length), or give the stage at_step"
                )
            # Rounding noise such as 0.1 * 30 = 3.0000000000000004 must not delay a stage.
            steps.append(math.ceil(stage.at_fraction * total - 1e-9))
        else:
            steps.append(stage.at_step)
    known = [step for step in steps if step is not None]
    if known != sorted(known):
        raise UserError(
            f"the stages {[stage.name for stage in stages]} begin at steps {steps} of {total}: they must be in order;"
            " move a stage, or give all of them in the same unit"
        )
    # What would begin at the end has no step to be in force for: the last validation belongs to the stage before.
    return [None if step and total is not None and step >= total else step for step in steps]
