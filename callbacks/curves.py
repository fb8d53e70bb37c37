"""Curves.

See the whole training at a glance: rewards, accuracy, KL, loss and speed in one picture.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from typing_extensions import override

from callbacks.outputs import run_folder, write_picture
from callbacks.rule_refinement import RuleRefinement
from vr1.errors import UserError
from vr1.runs.figures import COLOURS, over_steps, picture_of


class History:
    """Series of (step, value) by name.

    A series that grows beyond twice ``max_points`` keeps every second step from then on, so that points stay evenly
    spaced however long training lasts.

    Args:
        max_points: about how many points a series keeps.

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
        """Append a value, unless its step falls between the steps that are kept."""
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
        """Replace the series by saved ones."""
        self.series = {name: [(int(x), float(y)) for x, y in points] for name, points in state["series"].items()}
        self._stride = dict(state["stride"])


Series = Mapping[str, Sequence[tuple[int, float]]]


@dataclass(frozen=True)
class Panel:
    """One subject: the metrics it shows (a name ending in ``/`` takes all below it), and the range if it is fixed."""

    title: str
    metrics: tuple[str, ...]
    bounded: bool = False


PANELS = (
    Panel("Reward (training)", ("reward/total", "reward/")),
    Panel("Detection (validation)", ("val/map", "val/map_50", "val/map_75", "val/ar_100"), bounded=True),
    Panel("Valid answers (validation)", ("val/valid_rate",), bounded=True),
    Panel("KL to the reference", ("grpo/kl",)),
    Panel("Loss", ("grpo/loss", "sft/loss")),
    Panel("Tokens per second", ("perf/tokens_per_second",)),
    Panel("Completion length in tokens", ("grpo/completion_tokens",)),
    Panel("Groups without a signal", ("grpo/zero_variance_groups",), bounded=True),
)


def draw_curves(series: Series, switches: Sequence[tuple[int, str]] = ()) -> Image.Image | None:
    """Draw one panel per subject that has data.

    Args:
        series: (step, value) by metric name; values that are not finite are left out.
        switches: (step, name) of what is marked with an upright line.

    Returns:
        The picture, or None where there is nothing to draw.

    Example:
        >>> draw_curves({"grpo/kl": [(1, 0.0), (2, 0.1)]}).size
        (700, 400)
    """
    shown = [(panel, names) for panel in PANELS if (names := _names(panel, series))]
    if not shown:
        return None
    columns = 1 if len(shown) == 1 else 2 if len(shown) <= 4 else 3
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=((7.0 if columns == 1 else 5.2 * columns), (4.0 if rows == 1 else 3.3 * rows)), dpi=100)
    last = max(step for _, names in shown for name in names for step, _ in series[name])
    for index, (panel, names) in enumerate(shown):
        axes = figure.add_subplot(rows, columns, index + 1)
        _draw_panel(axes, panel, {name: series[name] for name in names})
        _mark(axes, switches, label=index == 0)
        axes.set_xlim(-0.015 * max(1, last), 1.015 * max(1, last))
    # Margins in inches: measuring every text for a tight layout would take longer than all of the drawing.
    wide, high = figure.get_size_inches()
    cell_wide, cell_high = wide / columns, high / rows
    figure.subplots_adjust(0.6 / wide, 0.55 / high, 1 - 0.15 / wide, 1 - 0.35 / high, 0.7 / cell_wide, 0.95 / cell_high)
    return picture_of(figure)


def _names(panel: Panel, series: Series) -> list[str]:
    names: list[str] = []
    for metric in panel.metrics:
        below = sorted(name for name in series if name.startswith(metric)) if metric.endswith("/") else [metric]
        names += [name for name in below if name not in names and _finite(series.get(name, ())).size]
    return names


def _finite(points: Sequence[tuple[int, float]]) -> np.ndarray:
    array = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    return array[np.isfinite(array).all(axis=1)]


def _draw_panel(axes: Axes, panel: Panel, series: Series) -> None:
    for index, (name, points) in enumerate(series.items()):
        steps, values = _finite(points).T
        colour, text = COLOURS[index % len(COLOURS)], name.split("/", 1)[1].replace("_", " ")
        if name.startswith("val/"):
            axes.plot(steps, values, "o-", color=colour, label=text, markersize=4, linewidth=1.6)
        else:
            # Rewards of single steps are noisy: the trend is drawn over them.
            smooth = len(values) >= 20
            bold = 2.2 if name.endswith("total") else 1.6
            axes.plot(steps, values, color=colour, alpha=0.25 if smooth else 1.0, linewidth=1 if smooth else bold)
            axes.lines[-1].set_label("_raw" if smooth else text)
            if smooth:
                axes.plot(steps, _trend(values), color=colour, linewidth=bold, label=text)
    over_steps(axes, panel.title)
    if panel.bounded:
        # From zero on, so that small gains look small; a model that is right by 5 % still needs the room.
        highest = max(float(_finite(points)[:, 1].max()) for points in series.values())
        top = min(1.03, max(0.05, 1.15 * highest))
        axes.set_ylim(-0.02 * top, top)
    if len(series) > 1:
        axes.legend(fontsize=8, framealpha=0.8, loc="best")


def _trend(values: np.ndarray) -> np.ndarray:
    """Centred running mean over about a twentieth of the curve, shorter at its ends."""
    reach = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _mark(axes: Axes, switches: Sequence[tuple[int, str]], *, label: bool) -> None:
    for step, name in switches:
        axes.axvline(step, color="#495057", linestyle="--", linewidth=1)
        if label:
            axes.text(
                step, 0.99, f" {name}", transform=axes.get_xaxis_transform(), va="top", fontsize=8, color="#495057"
            )


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
        UserError: if ``every_n_steps`` or ``max_points`` is less than 1.

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
