"""The figure of a training's curves, from series of numbers alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from vr1.runs.figures import COLOURS, over_steps, picture_of

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
    Panel("Groups without a signal", ("grpo/equal_groups",), bounded=True),
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
