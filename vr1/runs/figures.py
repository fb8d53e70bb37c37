"""Pictures of runs: the curves of one run by subject, and the curves of several runs side by side."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from vr1.runs.folder import Run

Series = Mapping[str, Sequence[tuple[int, float]]]
"""(optimizer step, value) by metric name."""

COLOURS = ("#1971c2", "#d9480f", "#2b8a3e", "#9c36b5", "#0c8599", "#e67700", "#c2255c", "#5c7cfa")
MARK = "#495057"


@dataclass(frozen=True)
class Panel:
    """One subject and its metrics.

    Attributes:
        title: shown above the panel.
        metrics: names of metrics; a name that ends in ``/`` or ``_`` stands for all metrics that begin with it.
        bounded: the values lie between 0 and 1, so the axis begins at 0.
        overview: :func:`draw_curves` draws it.
        meaning: what it says about a training, in a sentence.
    """

    title: str
    metrics: tuple[str, ...]
    bounded: bool = False
    overview: bool = True
    meaning: str = ""


PANELS = (
    Panel(
        "Reward (training)", ("reward/total", "reward/"), meaning="Of the sampled answers; noisy, so look at the trend."
    ),
    Panel(
        "Detection (validation)",
        ("val/map", "val/map_ranked", "val/map_50", "val/map_75", "val/ar_100"),
        bounded=True,
        meaning="COCO's figures of greedy answers: what counts in the end.",
    ),
    Panel(
        "Detection, ranked (validation)",
        ("val/map_50_ranked", "val/map_75_ranked"),
        bounded=True,
        overview=False,
        meaning="Boxes ranked by the probabilities of their tokens.",
    ),
    Panel(
        "Reward (validation)",
        ("val/reward", "val/reward_"),
        overview=False,
        meaning="Of greedy answers, at the thresholds of the stage.",
    ),
    Panel(
        "Valid answers (validation)",
        ("val/valid_rate",),
        bounded=True,
        meaning="Share of answers in the exact form, with boxes inside the image.",
    ),
    Panel("KL to the reference", ("grpo/kl",), meaning="Per token. Above 1 the policy has left the reference."),
    Panel("Supervised loss", ("sft/loss",), meaning="Mean negative log-probability of the true answers' tokens."),
    Panel(
        "Thresholds", ("rule/xi0", "rule/xi1", "rule/xi2"), overview=False, meaning="Of the stage that rewards follow."
    ),
    Panel(
        "Completion length in tokens",
        ("grpo/completion_tokens",),
        meaning="A steady rise is boxes that are not there.",
    ),
    Panel(
        "Zero-variance groups",
        ("grpo/zero_variance_groups",),
        bounded=True,
        meaning="Share of groups whose answers all earn the same: they teach nothing.",
    ),
    Panel(
        "Boxes with an advantage",
        ("grpo/boxes_with_advantage",),
        bounded=True,
        overview=False,
        meaning="Share of boxes that are better or worse than those of the other answers.",
    ),
    Panel("Norm of the gradient", ("grpo/grad_norm", "sft/grad_norm"), overview=False, meaning="Before it is clipped."),
    Panel(
        "Sampler against training pass",
        ("grpo/sampler_gap", "grpo/sampler_gap_max"),
        overview=False,
        meaning="Difference of log-probabilities: below 1e-4 in float32, some 1e-2 in bfloat16.",
    ),
    Panel("Tokens per second", ("perf/tokens_per_second",), meaning="Sampled by each process."),
    Panel("Loss", ("grpo/loss",), overview=False, meaning="Near 0 by construction: advantages of a group sum to 0."),
)


def panels_of(names: Iterable[str]) -> list[Panel]:
    """The panels that have a metric among ``names``, with the names that they show; then a panel for each other name.

    Example:
        >>> [panel.title for panel in panels_of(["reward/recall", "val/map", "my/own"])]
        ['Reward (training)', 'Detection (validation)', 'my/own']
    """
    known = list(dict.fromkeys(names))
    panels, used = [], {"epoch", "step", "rule/stage"}
    for panel in PANELS:
        matching = [name for metric in panel.metrics for name in _matching(metric, known)]
        if shown := [name for name in dict.fromkeys(matching) if name not in used]:
            used.update(shown)
            panels.append(replace(panel, metrics=tuple(shown)))
    return panels + [Panel(name, (name,), overview=False) for name in sorted(known) if name not in used]


def _matching(metric: str, names: list[str]) -> list[str]:
    if metric.endswith(("/", "_")):
        return sorted(name for name in names if name.startswith(metric))
    return [metric] if metric in names else []


def over_steps(axes: Axes, title: str) -> None:
    """Style axes that show a metric over the optimizer steps.

    Args:
        axes: of matplotlib.
        title: written above them.
    """
    axes.set_title(title, fontsize=11, loc="left", fontweight="bold")
    axes.set_xlabel("optimizer step", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def picture_of(figure: Figure) -> Image.Image:
    """A figure as an RGB picture; needs no display, whatever backend matplotlib is set to.

    Example:
        >>> picture_of(Figure(figsize=(3, 2), dpi=100)).size
        (300, 200)
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def draw_curves(series: Series, switches: Sequence[tuple[int, str]] = ()) -> Image.Image | None:
    """Draw one panel for each subject of a run that has data.

    Args:
        series: (optimizer step, value) by metric name; values that are not finite are left out.
        switches: (optimizer step, name) of each stage, marked with an upright line.

    Returns:
        An RGB picture, or None if there is nothing to draw.

    Example:
        >>> draw_curves({"grpo/kl": [(1, 0.0), (2, 0.1)]}).size
        (700, 400)
    """
    finite = {name: array for name, points in series.items() if len(array := _finite(points))}
    panels = [panel for panel in panels_of(finite) if panel.overview]
    if not panels:
        return None
    columns = 1 if len(panels) == 1 else 2 if len(panels) <= 4 else 3
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=((7.0 if columns == 1 else 5.2 * columns), (4.0 if rows == 1 else 3.3 * rows)), dpi=100)
    last = max(finite[name][:, 0].max() for panel in panels for name in panel.metrics)
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        _draw_panel(axes, panel, finite)
        _mark_switches(axes, switches, label=index == 0)
        axes.set_xlim(-0.015 * max(1, last), 1.015 * max(1, last))
    # Margins in inches: measuring every text for a tight layout takes longer than all of the drawing.
    width, height = figure.get_size_inches()
    cell_width, cell_height = width / columns, height / rows
    figure.subplots_adjust(
        left=0.6 / width,
        bottom=0.55 / height,
        right=1 - 0.15 / width,
        top=1 - 0.35 / height,
        wspace=0.7 / cell_width,
        hspace=0.95 / cell_height,
    )
    return picture_of(figure)


def _finite(points: Sequence[tuple[int, float]]) -> np.ndarray:
    array = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    return array[np.isfinite(array).all(axis=1)]


def _draw_panel(axes: Axes, panel: Panel, finite: Mapping[str, np.ndarray]) -> None:
    for index, name in enumerate(panel.metrics):
        steps, values = finite[name].T
        colour, text = COLOURS[index % len(COLOURS)], name.split("/", 1)[1].replace("_", " ")
        if name.startswith("val/"):
            axes.plot(steps, values, "o-", color=colour, label=text, markersize=4, linewidth=1.6)
        else:
            # Values of single steps are noisy: a running mean is drawn over them.
            smooth = len(values) >= 20
            bold = 2.2 if name.endswith("total") else 1.6
            axes.plot(steps, values, color=colour, alpha=0.25 if smooth else 1.0, linewidth=1 if smooth else bold)
            axes.lines[-1].set_label("_raw" if smooth else text)
            if smooth:
                axes.plot(steps, _running_mean(values), color=colour, linewidth=bold, label=text)
    over_steps(axes, panel.title)
    if panel.bounded:
        # From zero, so that small gains look small; a model with an mAP of 5 % still needs the whole height.
        highest = max(float(finite[name][:, 1].max()) for name in panel.metrics)
        top = min(1.03, max(0.05, 1.15 * highest))
        axes.set_ylim(-0.02 * top, top)
    if len(panel.metrics) > 1:
        axes.legend(fontsize=8, framealpha=0.8, loc="best")


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Centred running mean over about a twentieth of the curve, over fewer values at its ends."""
    reach = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _mark_switches(axes: Axes, switches: Sequence[tuple[int, str]], *, label: bool) -> None:
    for step, name in switches:
        axes.axvline(step, color=MARK, linestyle="--", linewidth=1)
        if label:
            axes.text(step, 0.99, f" {name}", transform=axes.get_xaxis_transform(), va="top", fontsize=8, color=MARK)


COMPARED = (
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
    """Draw several runs in one picture, one panel per metric.

    Args:
        names: name of each run in the legend.
        runs: the runs, in the same order.

    Returns:
        An RGB picture, or None if no run has one of the metrics.
    """
    metrics = [metric for metric in COMPARED if any(run.series.get(metric) for run in runs)]
    if not metrics:
        return None
    columns = min(3, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    figure = Figure(figsize=(5.0 * columns, 3.2 * rows + 0.3 * len(runs)), dpi=100, layout="constrained")
    for index, metric in enumerate(metrics):
        _draw_metric(figure.add_subplot(rows, columns, index + 1), metric, runs)
    lines = [
        figure.axes[0].plot([], [], color=_colour(index), linestyle=_style(index), label=name)[0]
        for index, name in enumerate(names)
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=min(3, len(names)), fontsize=9, frameon=False)
    return picture_of(figure)


def _draw_metric(axes: Axes, metric: str, runs: Sequence[Run]) -> None:
    for index, run in enumerate(runs):
        points = run.series.get(metric)
        if not points:
            continue
        steps, values = np.asarray(points, dtype=np.float64).T
        if len(values) >= 40:
            # The noise of single steps hides the difference between runs: their running mean shows it.
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
    """Runs of the same colour differ by their line style."""
    return STYLES[index // len(COLOURS) % len(STYLES)]
