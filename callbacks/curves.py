"""Curves.

See the whole training at a glance: rewards, accuracy, KL, loss and speed in one picture.
"""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from callbacks.curves_figure import draw_curves
from callbacks.history import History
from callbacks.rule_refinement import RuleRefinement
from callbacks.run_outputs import run_folder, write_picture

TRAINING = ("reward/", "grpo/", "sft/", "perf/")
VALIDATION = ("val/",)


class Curves(Callback):
    """Keep the course of the logged scalars and draw it as ``curves.png`` at every validation and at the end of fit.

    A panel is drawn for each subject that was logged: reward terms, detection accuracy, valid answers, KL, loss, speed
    and so on. Upright lines mark where a stage of :class:`~callbacks.RuleRefinement` began. The results of Lightning's
    sanity check (the untrained model) are the points at step 0, if it covers the whole validation set.

    Args:
        every_n_steps: take the training metrics at every n-th optimizer step.
        max_points: about how many points a curve keeps; a long training is thinned out evenly.

    The numbers behind the picture are in ``curves.json``, which reports and comparisons read.

    Note:
        The curves are saved in the checkpoint, so those of a resumed training begin at its very first step. A step
        counts finished optimizer steps: step 1 is the first update.

    Raises:
        ValueError: if ``every_n_steps`` or ``max_points`` is less than 1.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import Curves
        >>> trainer = Trainer(callbacks=[Curves()], logger=False)

    """

    def __init__(self, every_n_steps: int = 1, max_points: int = 1000) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("max_points", max_points)):
            if value < 1:
                raise ValueError(f"Curves: {name} is {value}: give at least 1")
        self.every_n_steps = every_n_steps
        self.history = History(max_points)
        self.switches: list[tuple[int, str]] = []
        self._folder = Path()
        self._last_step = 0
        self._stage: float | None = None

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        self._folder = run_folder(trainer)
        if stage == "fit" and trainer.global_step == 0:
            self.history = History(self.history.max_points)
            self.switches, self._stage, self._last_step = [], None, 0

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._last_step = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._last_step:
            return
        self._last_step = step
        self._mark_switch(trainer, step)
        if step % self.every_n_steps == 0:
            self._take(trainer, TRAINING)

    @override
    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if not trainer.sanity_checking or trainer.num_sanity_val_batches == trainer.num_val_batches:
            self._take(trainer, VALIDATION)
        if not trainer.sanity_checking:
            self._write(trainer)

    @override
    def on_fit_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._write(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        switches = [list(switch) for switch in self.switches]
        return {"history": self.history.state_dict(), "switches": switches, "stage": self._stage}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history.load_state_dict(state_dict["history"])
        self.switches = [(int(step), str(name)) for step, name in state_dict["switches"]]
        self._stage = state_dict["stage"]

    def _take(self, trainer: "pl.Trainer", prefixes: tuple[str, ...]) -> None:
        # Reading may make the processes exchange results, so every one of them reads.
        for name, value in trainer.callback_metrics.items():
            if name.startswith(prefixes):
                self.history.add(name, trainer.global_step, float(value))

    def _mark_switch(self, trainer: "pl.Trainer", step: int) -> None:
        logged = trainer.callback_metrics.get("rule/stage")
        if logged is None or float(logged) == self._stage:
            return
        if self._stage is not None:
            refinements = [item for item in trainer.callbacks if isinstance(item, RuleRefinement)]  # type: ignore[attr-defined]
            stages = refinements[0].stages if refinements else []
            index = int(logged)
            # The metric was logged by the step that has just ended, before which the stage began.
            self.switches.append((step - 1, stages[index].name if index < len(stages) else f"stage {index}"))
        self._stage = float(logged)

    def _write(self, trainer: "pl.Trainer") -> None:
        if trainer.is_global_zero:
            picture = draw_curves(self.history.series, self.switches)
            if picture is not None:
                write_picture(trainer, self._folder, "curves.png", picture, key="curves")
                self._write_numbers(trainer)

    def _write_numbers(self, trainer: "pl.Trainer") -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            numbers = {"series": self.history.series, "switches": self.switches}
            (self._folder / "curves.json").write_text(json.dumps(numbers) + "\n", encoding="utf-8")
