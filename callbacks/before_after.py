"""Before and after: the validation metrics of the untrained model next to those of the trained one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from callbacks.outputs import run_folder
from callbacks.rule_refinement import stage_name
from vr1.errors import UserError
from vr1.modules.state import HasTrainingState
from vr1.runs.classes import ClassComparison, ClassMeasurement
from vr1.runs.tables import Comparison, Measurement


class BeforeAfter(Callback):
    """Print a table of the validation metrics before and after training, and write it into the run's folder.

    "Before" is Lightning's sanity check over the whole validation set (``num_sanity_val_steps: -1``); its results,
    which Lightning discards, are also logged as step 0. "After" is the last validation. If a ``ModelCheckpoint``
    monitors one of the metrics, the best validation by that metric has a column too.

    The files are ``before_after.md`` and ``before_after.json``. They also have a table by class: boxes, AP at the first
    and the last validation (and at the best one), and the change.

    Args:
        prefix: metrics in the table are those whose names begin with it.

    Note:
        A sanity check over part of the data does not count as "before", since it measures something else than
        validation does; a note below the table then explains the empty column. The measurements are saved in the
        checkpoint, so a resumed training has the same table.

    Raises:
        UserError: ``prefix`` is empty.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import BeforeAfter
        >>> trainer = Trainer(callbacks=[BeforeAfter()], num_sanity_val_steps=-1, logger=False)

    """

    def __init__(self, prefix: str = "val/") -> None:
        if not prefix:
            raise UserError("BeforeAfter: prefix is empty: give the first part of the metrics' names, such as 'val/'")
        self.prefix = prefix
        self.before: Measurement | None = None
        self.validations: list[Measurement] = []
        self.classes = ClassComparison()
        self._stages: dict[str, str] = {}
        self._folder = Path()
        self._note = ""

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        self._folder = run_folder(trainer)
        if stage == "fit" and trainer.global_step == 0:
            self.before, self.validations, self.classes, self._stages = None, [], ClassComparison(), {}
            self._note = (
                "The untrained model was not evaluated: set the trainer's num_sanity_val_steps to -1 (a resumed"
                " training has the evaluation of its checkpoint)."
            )

    @override
    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        # Reading a metric may reduce it over the processes, so all of them read.
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(self.prefix)}
        self._stages["before" if trainer.sanity_checking else "after"] = stage_name(trainer)
        if not trainer.sanity_checking:
            self.validations.append(Measurement(trainer.global_step, metrics))
        elif trainer.num_sanity_val_batches == trainer.num_val_batches:
            self.before = Measurement(0, metrics)
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=0)
        else:
            self._note = (
                f"The sanity check covered {trainer.num_sanity_val_batches} of {trainer.num_val_batches} validation"
                " batches, so it does not compare with validation: set the trainer's num_sanity_val_steps to -1."
            )
            return
        if isinstance(pl_module, HasTrainingState) and pl_module.training_state.classes:
            self._record_classes(trainer, ClassMeasurement(trainer.global_step, dict(pl_module.training_state.classes)))

    @override
    def on_fit_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if not trainer.is_global_zero or not (self.validations or self.before):
            return
        after = self.validations[-1] if self.validations else None
        comparison = Comparison(self.before, after, *self._best(trainer), notes=self._notes(trainer))
        comparison.show()
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._folder.mkdir(parents=True, exist_ok=True)
            by_class = self.classes.markdown()
            markdown = comparison.markdown() + (f"\n{by_class}" if by_class else "")
            (self._folder / "before_after.md").write_text(markdown, encoding="utf-8")
            validations = [item.state_dict() for item in self.validations]
            content = {**comparison.as_dict(), "validations": validations, "classes": self.classes.as_dict()}
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (self._folder / "before_after.json").write_text(text, encoding="utf-8")

    @override
    def state_dict(self) -> dict[str, Any]:
        before = None if self.before is None else self.before.state_dict()
        return {
            "before": before,
            "validations": [item.state_dict() for item in self.validations],
            "stages": self._stages,
            "classes": self.classes.as_dict(),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before = state_dict["before"]
        self.before = None if before is None else Measurement(**before)
        self.validations = [Measurement(**item) for item in state_dict["validations"]]
        self._stages = dict(state_dict.get("stages", {}))
        self.classes = ClassComparison.from_dict(state_dict.get("classes", {}))

    def _record_classes(self, trainer: "pl.Trainer", measured: ClassMeasurement) -> None:
        best, _ = self._best(trainer)
        if self.classes.first is None:
            self.classes = replace(self.classes, first=measured)
        else:
            self.classes = replace(self.classes, last=measured)
        if best is not None and best.step == measured.step:
            self.classes = replace(self.classes, best=measured)

    def _best(self, trainer: "pl.Trainer") -> tuple[Measurement | None, str]:
        """The best validation by the metric that a checkpoint callback monitors, and the name of that metric."""
        for callback in trainer.checkpoint_callbacks:
            monitor = callback.monitor if isinstance(callback, ModelCheckpoint) else None
            measured = [item for item in self.validations if monitor in item.metrics]
            if isinstance(callback, ModelCheckpoint) and monitor and measured:
                best = max if callback.mode == "max" else min
                return best(measured, key=lambda item: item.metrics[monitor]), monitor
        return None, ""

    def _notes(self, trainer: "pl.Trainer") -> list[str]:
        notes = [] if self.before else [self._note]
        if self.before and len(set(self._stages.values())) > 1:
            notes.append(
                f"The reward before is by the criterion of stage {self._stages['before']}, the reward after by that of"
                f" stage {self._stages['after']}, so they do not compare; the other metrics do."
            )
        if not self.validations:
            notes.append("Training ended before the first validation: lower the trainer's val_check_interval.")
        elif self.validations[-1].step != trainer.global_step:
            notes.append(
                f"The last validation was at step {self.validations[-1].step} of {trainer.global_step}; the model after"
                " the last step was not measured."
            )
        return notes
