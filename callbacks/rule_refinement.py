"""Progressive rule refinement.

Raise the bar of the reward rules while training goes on: what earns a reward in one stage no longer does in the next.
"""

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


class RuleRefinement(Callback):
    """Set the criterion of the reward, stage by stage.

    A stage is in force from the first batch of the optimizer step at which it begins. If several have begun, the last
    of them counts; so a stage with a fixed moment also ends the wait for a plateau listed before it.

    Args:
        stages: the schedule, in order. None is the paper's: *beginner* (0.5, 0.5, 0.75), and *advanced*
            (0.75, 0.75, 0.9) from the middle of training. An empty list switches the callback off: the reward keeps
            the criterion it was built with. A stage replaces the whole criterion, its ``strict`` included.
        switch_at: the share of training, from 0 to 1, at which the last stage begins, in place of the moment that the
            stage itself names; at 1 it never begins. One number, so that a sweep can vary it.

    Note:
        Fixed stages depend on nothing but ``trainer.global_step`` and the length of training. What a plateau depends
        on is saved in the checkpoint. Every process decides on the mean of the monitored metric over all processes.

        A monitor whose name begins with ``val/`` is a result of validation; it keeps its value until the next one, and
        patience still counts optimizer steps.

        Only ``fit`` is scheduled. ``validate`` and ``test`` use the criterion of the reward's own settings, so that
        checkpoints of different stages are measured alike.

    Raises:
        UserError: if the stages are not a schedule (:class:`~callbacks.schedule.Stage`), if a fraction is asked for
            and nothing bounds the training, if the module has no reward to set, or if a monitored metric is not logged.

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
        """The stage in force; None when the callback is off."""
        return self.stages[self._index] if self.stages else None

    @property
    def first_steps(self) -> list[int | None]:
        """The optimizer step at which each stage begins or began; None where it does not, or nobody can tell yet."""
        return [
            self._begun.get(stage.name) if fixed is None else fixed
            for stage, fixed in zip(self.stages, self._fixed, strict=True)
        ]

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        if stage != "fit" or not self.stages:
            return
        if not hasattr(getattr(pl_module, "reward", None), "criterion"):
            raise UserError(
                f"RuleRefinement sets `reward.criterion`, which {type(pl_module).__name__} does not have: leave the"
                " callback out, or give it `stages: []`"
            )
        if trainer.global_step == 0:
            # One callback object may serve several trainers; a checkpoint, if any, is read after this.
            self._reset()

    @override
    def on_sanity_check_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        # The length of training is not known yet, but this check only happens before the first step.
        if self.stages:
            pl_module.reward.criterion = self.stages[0].criterion  # type: ignore[union-attr]

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
            # A share of 1 asks for just this.
            if first is None and stage.on_plateau is None and stage.at_fraction != 1:
                moment = f"at_step {stage.at_step}" if stage.at_fraction is None else f"at_fraction {stage.at_fraction}"
                rank_zero_warn(
                    f"stage {stage.name!r} never begins: {moment} is the end of a training of {total} steps, or after"
                    " it; give it an earlier moment, or leave it out"
                )
        self._seen_step = trainer.global_step
        self._enter(trainer, pl_module)
        if self._saved and self._saved["stage"] != self.stages[self._index].name:
            rank_zero_warn(
                f"the checkpoint was saved in stage {self._saved['stage']!r}; with the present schedule and length of"
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
            # Between two optimizer steps (gradient accumulation) there is nothing to decide.
            return
        self._seen_step = trainer.global_step
        if self._watch is not None:
            self._look(trainer, pl_module, self._watch)
        # Here rather than at the next batch: a validation or checkpoint in between belongs to this step already.
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
        """Put the stage of this step in force, and watch for the plateau that the next one waits for."""
        step = trainer.global_step
        begun = [index for index, first in enumerate(self.first_steps) if first is not None and first <= step]
        self._index = begun[-1]
        pl_module.reward.criterion = self.stages[self._index].criterion  # type: ignore[union-attr]
        awaited = self._index + 1 if self._index + 1 < len(self.stages) else None
        if awaited == self._watched:
            return
        plateau = None if awaited is None else self.stages[awaited].on_plateau
        self._watched = awaited
        self._watch = None if plateau is None else PlateauWatch(plateau, since=step)
        if self._watch is not None and self._saved.get("watched") == self.stages[self._index + 1].name:
            self._watch.load_state_dict(self._saved["watch"])

    def _look(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", watch: PlateauWatch) -> None:
        """Take in what the monitored metric is after this step; a stage begins where it has become flat."""
        assert self._watched is not None
        step, plateau, name = trainer.global_step, watch.plateau, self.stages[self._watched].name
        value = _mean_over_processes(trainer.callback_metrics.get(plateau.monitor), pl_module)
        if value is None:
            # A result of validation may come late: on_validation_end looks after those.
            if not _from_validation(plateau) and step - watch.since >= plateau.patience:
                raise _missing(plateau, trainer)
        elif watch.observe(value, step):
            self._begun[name] = step
            rank_zero_info(f"{plateau.monitor} is flat at step {step}: stage {name!r} begins")


def stage_name(trainer: "pl.Trainer") -> str:
    """The name of the stage in force; empty where no rules are refined, or training has not been set up."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RuleRefinement) and callback.stage:
            return callback.stage.name
    return ""


def _mean_over_processes(logged: torch.Tensor | None, pl_module: "pl.LightningModule") -> float | None:
    """The mean over the processes that logged the metric: the same number on each of them, None if none did."""
    here = torch.tensor([0.0, 0.0] if logged is None else [float(logged), 1.0], device=pl_module.device)
    gathered = pl_module.all_gather(here)
    assert isinstance(gathered, torch.Tensor)
    # Each process adds up the same numbers in the same order, hence no process can decide otherwise.
    total, count = gathered.reshape(-1, 2).cpu().double().sum(dim=0).tolist()
    return total / count if count else None


def _from_validation(plateau: Plateau) -> bool:
    return plateau.monitor.startswith("val/")


def _missing(plateau: Plateau, trainer: "pl.Trainer") -> UserError:
    return UserError(
        f"RuleRefinement monitors {plateau.monitor!r}, which was not logged by step {trainer.global_step}: choose one"
        f" of {sorted(trainer.callback_metrics)}"
    )
