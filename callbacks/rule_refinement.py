"""Progressive rule refinement: stricter thresholds of the reward as training advances."""

from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from callbacks.schedule import (
    Plateau,
    PlateauWatch,
    Stage,
    check_stages,
    first_steps,
    last_begins_at,
    paper_stages,
    total_steps,
)
from vr1.errors import UserError
from vr1.modules.state import HasTrainingState
from vr1.rewards import STAGES, Criterion, Reward


def reward_of(pl_module: "pl.LightningModule") -> Reward | None:
    """The reward of a LightningModule, which every module of vr1 has; None without one.

    It is a part of the module, and torch looks parts up on access. A runtime-checkable protocol does not
    see them: from Python 3.12 on it looks at an object's own attributes alone.
    """
    reward = dict(pl_module.named_children()).get("reward")
    return reward if isinstance(reward, Reward) else None


class RuleRefinement(Callback):
    """Set the criterion of the reward, stage by stage.

    A stage applies from the first batch of the optimizer step at which it begins. If several stages have begun, the
    last of them applies; so a stage with a fixed beginning also ends the wait for a plateau of a stage before it.

    Args:
        stages: the schedule, in order. None is the paper's: *beginner* (0.5, 0.5, 0.75), and *advanced*
            (0.75, 0.75, 0.9) from the middle of training. An empty list switches the callback off; the reward then
            keeps its own criterion. A stage replaces the whole criterion, ``strict`` included; those of the paper keep
            the reward's ``strict``. Of a reward that names its ``stages``, a schedule has only criteria of these.
        switch_at: share of training, from 0 to 1, at which the last stage begins, in place of the stage's own
            beginning; at 1 it never begins. A single number that a sweep can vary.

    Note:
        Stages with a fixed beginning depend only on ``trainer.global_step`` and the length of training. The state of a
        plateau is saved in the checkpoint. Every process decides on the mean of the monitored metric over all
        processes.

        A monitored metric whose name begins with ``val/`` has its last value until the next validation; ``patience``
        still counts optimizer steps.

        Only ``fit`` follows the schedule. ``validate`` and ``test`` use the criterion of the reward's own settings, so
        that results of checkpoints from different stages are comparable.

    Raises:
        UserError: the stages are not a schedule (:class:`~callbacks.schedule.Stage`), the reward does not have the
            criterion of a stage, a stage begins at a fraction of a training without a limit, the module has no
            :class:`~vr1.rewards.Reward`, or a monitored metric is not logged.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import RuleRefinement
        >>> trainer = Trainer(callbacks=[RuleRefinement()], max_steps=100, logger=False)

    In YAML::

        - class_path: callbacks.RuleRefinement
          init_args:
            stages:
              - {name: beginner, criterion: {xi0: 0.5, xi1: 0.5, xi2: 0.75}}
              - name: advanced
                criterion: {xi0: 0.75, xi1: 0.75, xi2: 0.9}
                on_plateau: {monitor: reward/total, patience: 100}
    """

    def __init__(self, stages: list[Stage] | None = None, switch_at: float | None = None) -> None:
        self._is_papers = stages is None
        self.stages = paper_stages() if stages is None else list(stages)
        if switch_at is not None:
            self.stages = last_begins_at(self.stages, switch_at)
        check_stages(self.stages)
        self._reset()

    def _reset(self) -> None:
        self._fixed: list[int | None] = [None] * len(self.stages)
        self._begun: dict[str, int] = {}
        self._watch: PlateauWatch | None = None
        self._watched: int | None = None
        self._saved: dict[str, Any] = {}
        self._index = 0
        self._seen_step = 0

    @property
    def stage(self) -> Stage | None:
        """The stage that applies; None if the callback is off."""
        return self.stages[self._index] if self.stages else None

    @property
    def first_steps(self) -> list[int | None]:
        """The optimizer step at which each stage begins; None if it never does, or waits for a plateau."""
        return [
            self._begun.get(stage.name) if fixed is None else fixed
            for stage, fixed in zip(self.stages, self._fixed, strict=True)
        ]

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        if stage != "fit" or not self.stages:
            return
        if (reward := reward_of(pl_module)) is None:
            raise UserError(
                f"RuleRefinement requires a module with a reward, and {type(pl_module).__name__} has none: leave the"
                " callback out, or give it `stages: []`"
            )
        self._agree_with(reward)
        if trainer.global_step == 0:
            # One callback may serve several trainers; a checkpoint is loaded after this.
            self._reset()

    def _agree_with(self, reward: Reward) -> None:
        """Take the criteria of the reward's own stages, or refuse a schedule that has others."""
        own: dict[str, Criterion] = {name: reward.criterion.at_stage(name) for name in reward.stages}
        if self._is_papers:
            self.stages = [replace(stage, criterion=own.get(stage.name, stage.criterion)) for stage in self.stages]
        if set(own) == set(STAGES):
            return
        for stage in self.stages:
            if stage.criterion not in own.values():
                raise UserError(
                    f"RuleRefinement's stage {stage.name!r} has {stage.criterion}, but reward.stages are"
                    f" {' and '.join(own)} ({', '.join(map(str, own.values()))}): give the callback these, or"
                    " `stages: []` to keep the reward's own criterion"
                )

    @override
    def on_sanity_check_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        # The length of training is unknown yet, but this check only happens before the first step.
        if self.stages:
            self._apply(pl_module)

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if not self.stages:
            return
        for stage in self.stages:
            if stage.on_plateau and _from_validation(stage.on_plateau) and not trainer.enable_validation:
                raise UserError(
                    f"stage {stage.name!r} monitors {stage.on_plateau.monitor!r}, but the trainer does not validate:"
                    " give it validation data, or monitor a training metric such as 'reward/total'"
                )
        total = total_steps(trainer)
        self._fixed = first_steps(self.stages, total)
        for stage, first in zip(self.stages, self._fixed, strict=True):
            # With a share of 1 this is intended.
            if first is None and stage.on_plateau is None and stage.at_fraction != 1:
                begins = f"at_step {stage.at_step}" if stage.at_fraction is None else f"at_fraction {stage.at_fraction}"
                rank_zero_warn(
                    f"stage {stage.name!r} never begins: {begins} is the end of a training of {total} steps, or after"
                    " it; let it begin earlier, or leave it out"
                )
        self._seen_step = trainer.global_step
        self._enter(trainer, pl_module)
        if self._saved and self._saved["stage"] != self.stages[self._index].name:
            rank_zero_warn(
                f"the checkpoint was saved in stage {self._saved['stage']!r}; with the current schedule and length of"
                f" training, step {trainer.global_step} is in stage {self.stages[self._index].name!r}"
            )
        self._saved = {}

    @override
    def on_train_batch_start(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int
    ) -> None:
        if not self.stages:
            return
        criterion = self.stages[self._index].criterion
        thresholds = {f"rule/{name}": float(getattr(criterion, name)) for name in ("xi0", "xi1", "xi2")}
        pl_module.log_dict({"rule/stage": float(self._index), **thresholds}, on_step=True, on_epoch=False)

    @override
    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.stages or trainer.global_step == self._seen_step:
            # Still in the same optimizer step (gradient accumulation).
            return
        self._seen_step = trainer.global_step
        if self._watch is not None:
            self._observe(trainer, pl_module, self._watch)
        # Not at the next batch: a validation or a checkpoint in between follows the new stage.
        self._enter(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        for stage in self.stages:
            plateau = stage.on_plateau
            if plateau and _from_validation(plateau) and plateau.monitor not in trainer.callback_metrics:
                raise _missing(plateau, trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        if not self.stages:
            return {}
        watch = None if self._watch is None else self._watch.state_dict()
        watched = None if self._watched is None else self.stages[self._watched].name
        return {"stage": self.stages[self._index].name, "begun": dict(self._begun), "watched": watched, "watch": watch}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = dict(state_dict)
        names = {stage.name for stage in self.stages}
        self._begun = {name: step for name, step in state_dict.get("begun", {}).items() if name in names}

    def _enter(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Apply the stage of this step, and watch for the plateau that the next stage waits for."""
        step = trainer.global_step
        begun = [index for index, first in enumerate(self.first_steps) if first is not None and first <= step]
        self._index = begun[-1]
        self._apply(pl_module)
        next_index = self._index + 1 if self._index + 1 < len(self.stages) else None
        if next_index == self._watched:
            return
        plateau = None if next_index is None else self.stages[next_index].on_plateau
        self._watched = next_index
        self._watch = None if plateau is None else PlateauWatch(plateau, since=step)
        if self._watch is not None and self._saved.get("watched") == self.stages[self._index + 1].name:
            self._watch.load_state_dict(self._saved["watch"])

    def _apply(self, pl_module: "pl.LightningModule") -> None:
        reward = reward_of(pl_module)
        assert reward is not None, "`setup` requires it"
        reward.criterion = self.stages[self._index].criterion

    def _observe(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", watch: PlateauWatch) -> None:
        """Add the monitored metric's value after this step; the next stage begins if it is flat."""
        assert self._watched is not None
        if isinstance(pl_module, HasTrainingState) and pl_module.training_state.warm_start:
            # Rewards are not logged yet.
            return
        step, plateau, name = trainer.global_step, watch.plateau, self.stages[self._watched].name
        value = _mean_over_processes(trainer.callback_metrics.get(plateau.monitor), pl_module)
        if value is None:
            # A metric of validation may come later: on_validation_end checks it.
            if not _from_validation(plateau) and step - watch.since >= plateau.patience:
                raise _missing(plateau, trainer)
        elif watch.observe(value, step):
            self._begun[name] = step
            rank_zero_info(f"{plateau.monitor} is flat at step {step}: stage {name!r} begins")


def stage_name(trainer: "pl.Trainer") -> str:
    """The name of the stage that applies.

    Args:
        trainer: any trainer.

    Returns:
        Empty if the trainer has no :class:`RuleRefinement`, or one without stages.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RuleRefinement) and callback.stage:
            return callback.stage.name
    return ""


def _mean_over_processes(logged: torch.Tensor | None, pl_module: "pl.LightningModule") -> float | None:
    """The mean over the processes that logged the metric: the same number on each of them, None if none did."""
    here = torch.tensor([0.0, 0.0] if logged is None else [float(logged), 1.0], device=pl_module.device)
    gathered = pl_module.all_gather(here)
    assert isinstance(gathered, torch.Tensor)
    # Each process sums the same numbers in the same order, so all of them decide alike.
    total, count = gathered.reshape(-1, 2).cpu().double().sum(dim=0).tolist()
    return total / count if count else None


def _from_validation(plateau: Plateau) -> bool:
    return plateau.monitor.startswith("val/")


def _missing(plateau: Plateau, trainer: "pl.Trainer") -> UserError:
    return UserError(
        f"RuleRefinement monitors {plateau.monitor!r}, which was not logged by step {trainer.global_step}: choose one"
        f" of {sorted(trainer.callback_metrics)}"
    )
