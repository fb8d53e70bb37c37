"""Record the logged metrics during training and draw them as one picture."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from callbacks.outputs import run_folder, write_picture
from callbacks.rule_refinement import RuleRefinement
from vr1.errors import UserError
from vr1.modules.state import HasTrainingState
from vr1.runs.figures import draw_curves

TRAINING = ("reward/", "grpo/", "sft/", "perf/")
VALIDATION = ("val/",)


class History:
    """Series of (step, value) by metric name, of limited length.

    A series longer than twice ``max_points`` drops every second step, again and again, so its points stay evenly spaced
    for a training of any length.

    Args:
        max_points: about how many points a series has.

    Example:
        >>> history = History(max_points=2)
        >>> for step in range(1, 9):
        ...     history.add("loss", step, float(step))
        >>> history.series["loss"]
        [(2, 2.0), (4, 4.0), (6, 6.0), (8, 8.0)]
    """

    def __init__(self, max_points: int = 1000) -> None:
        self.max_points = max_points
        self.series: dict[str, list[tuple[int, float]]] = {}
        self._stride: dict[str, int] = {}

    def add(self, name: str, step: int, value: float) -> None:
        """Append a value, unless its step is one that the series drops.

        Args:
            name: of the metric.
            step: optimizer steps finished.
            value: of the metric at this step.
        """
        points = self.series.setdefault(name, [])
        stride = self._stride.setdefault(name, 1)
        if step % stride:
            return
        points.append((step, value))
        while len(points) > 2 * self.max_points:
            stride *= 2
            points[:] = [point for point in points if point[0] % stride == 0]
        self._stride[name] = stride

    def state_dict(self) -> dict[str, Any]:
        """The series in plain types."""
        series = {name: [list(point) for point in points] for name, points in self.series.items()}
        return {"series": series, "stride": dict(self._stride)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.series = {name: [(int(x), float(y)) for x, y in points] for name, points in state["series"].items()}
        self._stride = dict(state["stride"])


class Curves(Callback):
    """Record logged metrics and draw them as ``curves.png`` at every validation and at the end of training.

    There is one panel for each subject that was logged: rewards, detection accuracy, valid answers, KL, loss, speed and
    so on. Upright lines mark the beginning of each stage of :class:`~callbacks.RuleRefinement`, and that of the rewards
    after a warm start. The results of Lightning's sanity check (the untrained model) are the points at step 0, if it
    covers the whole validation set. ``curves.json`` has the numbers; reports and comparisons read them.

    Args:
        every_n_steps: record the training metrics at every n-th optimizer step.
        max_points: about how many points a curve has; longer ones are thinned out evenly.

    Note:
        The curves are part of the checkpoint, so those of a resumed training begin at its first step. A step is the
        number of finished optimizer steps: step 1 is the first update.

    Raises:
        UserError: ``every_n_steps`` or ``max_points`` is less than 1.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import Curves
        >>> trainer = Trainer(callbacks=[Curves()], logger=False)

    """

    def __init__(self, every_n_steps: int = 1, max_points: int = 1000) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("max_points", max_points)):
            if value < 1:
                raise UserError(f"Curves: {name} is {value}: give at least 1")
        self.every_n_steps = every_n_steps
        self.history = History(max_points)
        self.switches: list[tuple[int, str]] = []
        self._folder = Path()
        self._last_step = 0
        self._stage: float | None = None
        self._warm_start = False
        self._written = ""

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        self._folder, self._written = run_folder(trainer), ""
        if stage == "fit" and trainer.global_step == 0:
            self.history = History(self.history.max_points)
            self.switches, self._stage, self._last_step, self._warm_start = [], None, 0, False

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
        self._record_switch(trainer, step)
        warm_start = isinstance(pl_module, HasTrainingState) and pl_module.training_state.warm_start
        if self._warm_start and not warm_start:
            self.switches.append((step - 1, "rewards"))
        self._warm_start = warm_start
        if step % self.every_n_steps == 0:
            self._record(trainer, TRAINING)

    @override
    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if not trainer.sanity_checking or trainer.num_sanity_val_batches == trainer.num_val_batches:
            self._record(trainer, VALIDATION)
        if not trainer.sanity_checking:
            self._write(trainer)

    @override
    def on_fit_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._write(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        switches = [list(switch) for switch in self.switches]
        return {
            "history": self.history.state_dict(),
            "switches": switches,
            "stage": self._stage,
            "warm_start": self._warm_start,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history.load_state_dict(state_dict["history"])
        self.switches = [(int(step), str(name)) for step, name in state_dict["switches"]]
        self._stage, self._warm_start = state_dict["stage"], state_dict.get("warm_start", False)

    def _record(self, trainer: "pl.Trainer", prefixes: tuple[str, ...]) -> None:
        # Reading a metric may reduce it over the processes, so all of them read.
        logged = trainer.callback_metrics
        # Lightning keeps the last value of a metric that is no longer logged: the supervised loss of a warm start.
        ended = "sft/" if "grpo/loss" in logged else ()
        for name, value in logged.items():
            if name.startswith(prefixes) and not name.startswith(ended):
                self.history.add(name, trainer.global_step, float(value))

    def _record_switch(self, trainer: "pl.Trainer", step: int) -> None:
        logged = trainer.callback_metrics.get("rule/stage")
        if logged is None or float(logged) == self._stage:
            return
        if self._stage is not None:
            refinements = [item for item in trainer.callbacks if isinstance(item, RuleRefinement)]  # type: ignore[attr-defined]
            stages = refinements[0].stages if refinements else []
            index = int(logged)
            # The step that has just ended logged the metric; the stage began before it.
            self.switches.append((step - 1, stages[index].name if index < len(stages) else f"stage {index}"))
        self._stage = float(logged)

    def _write(self, trainer: "pl.Trainer") -> None:
        if not trainer.is_global_zero:
            return
        content = json.dumps({"series": self.history.series, "switches": self.switches}) + "\n"
        if content == self._written:
            # A validation after the last step has drawn them.
            return
        self._written = content
        picture = draw_curves(self.history.series, self.switches)
        if picture is None:
            return
        write_picture(trainer, self._folder, "curves.png", picture, key="curves")
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            (self._folder / "curves.json").write_text(content, encoding="utf-8")
