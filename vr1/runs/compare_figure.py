"""The curves of several runs, a panel for each metric and a colour for each run."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from vr1.runs.figures import COLOURS, over_steps, picture_of
from vr1.runs.folder import Run

METRICS = (
    "val/map",
    "val/map_50",
    "val/reward",
    "reward/total",
    "reward/recall",
    "reward/precision",
    "grpo/kl",
    "grpo/completion_tokens",
    "sft/loss",
)
STYLES = ("-", "--", ":", "-.")


def draw_runs(names: Sequence[str], runs: Sequence[Run]) -> Image.Image | None:
    """Draw the runs, a metric a panel; None where they have none of the metrics."""
    shown = [metric for metric in METRICS if any(run.series.get(metric) for run in runs)]
    if not shown:
        return None
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(5.0 * columns, 3.2 * rows + 0.3 * len(runs)), dpi=100, layout="constrained")
    for index, metric in enumerate(shown):
        _panel(figure.add_subplot(rows, columns, index + 1), metric, runs)
    lines = [
        figure.axes[0].plot([], [], color=_colour(index), linestyle=_style(index), label=name)[0]
        for index, name in enumerate(names)
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=min(3, len(names)), fontsize=9, frameon=False)
    return picture_of(figure)


def _panel(axes: Axes, metric: str, runs: Sequence[Run]) -> None:
    for index, run in enumerate(runs):
        points = run.series.get(metric)
        if not points:
            continue
        array: np.ndarray = np.asarray(points, dtype=np.float64)
        steps, values = array[:, 0], array[:, 1]
        if len(values) >= 40:
            # Rewards of single steps hide the difference between runs: their running mean shows it.
            width = len(values) // 20
            values = np.convolve(values, np.ones(width) / width, mode="valid")
            steps = steps[width // 2 : width // 2 + len(values)]
        marker = "o" if len(values) <= 20 else None
        axes.plot(steps, values, color=_colour(index), linestyle=_style(index), marker=marker, markersize=3.5)
        for step, _ in run.switches:
            axes.axvline(step, color=_colour(index), linestyle=":", linewidth=0.9, alpha=0.6)
    over_steps(axes, metric)


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _style(index: int) -> str:
    """Beyond the colours, lines are told apart by their dashes."""
    return STYLES[index // len(COLOURS) % len(STYLES)]
