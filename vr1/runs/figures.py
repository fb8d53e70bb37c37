"""The pictures of runs: what they have in common, which metrics share a panel, and curves of several runs."""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from vr1.runs.folder import Run

COLOURS = ("#1971c2", "#d9480f", "#2b8a3e", "#9c36b5", "#0c8599", "#e67700", "#c2255c", "#5c7cfa")


def over_steps(axes: Axes, title: str) -> None:
    """Make axes those of a metric over the optimizer steps."""
    axes.set_title(title, fontsize=11, loc="left", fontweight="bold")
    axes.set_xlabel("optimizer step", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def picture_of(figure: Figure) -> Image.Image:
    """A figure as RGB, drawn without a screen whatever matplotlib is set to.

    Example:
        >>> picture_of(Figure(figsize=(3, 2), dpi=100)).size
        (300, 200)
    """
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    with Image.open(buffer) as picture:
        return picture.convert("RGB")


@dataclass(frozen=True)
class Panel:
    """One subject and its metrics; a name ending in ``/`` takes all below it."""

    title: str
    metrics: tuple[str, ...]


PANELS = (
    Panel("Reward (training)", ("reward/total", "reward/")),
    Panel("Detection (validation)", ("val/map", "val/map_50", "val/map_75", "val/ar_100")),
    Panel("Reward (validation)", ("val/reward", "val/reward_")),
    Panel("Valid answers (validation)", ("val/valid_rate", "val/well_formed_rate")),
    Panel("KL to the reference", ("grpo/kl",)),
    Panel("Loss", ("grpo/loss", "sft/loss")),
    Panel("Thresholds", ("rule/xi0", "rule/xi1", "rule/xi2")),
    Panel("Completion length in tokens", ("grpo/completion_tokens",)),
    Panel("Groups without a signal", ("grpo/zero_variance_groups",)),
    Panel("Tokens per second", ("perf/tokens_per_second",)),
)


def panels_of(names: Iterable[str]) -> list[Panel]:
    """The panels that have something to show, their metrics written out; what no panel takes comes last, one by one.

    Example:
        >>> [panel.title for panel in panels_of(["reward/recall", "val/map", "my/own"])]
        ['Reward (training)', 'Detection (validation)', 'my/own']
    """
    known = list(dict.fromkeys(names))
    shown, taken = [], {"epoch", "step", "rule/stage"}
    for panel in PANELS:
        found = [name for metric in panel.metrics for name in _takes(metric, known)]
        if found := [name for name in dict.fromkeys(found) if name not in taken]:
            taken.update(found)
            shown.append(Panel(panel.title, tuple(found)))
    return shown + [Panel(name, (name,)) for name in sorted(known) if name not in taken]


def _takes(metric: str, names: list[str]) -> list[str]:
    if metric.endswith(("/", "_")):
        return sorted(name for name in names if name.startswith(metric))
    return [metric] if metric in names else []


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
