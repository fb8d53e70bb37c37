"""The figure of a sweep: a scatter plot of one parameter, parallel coordinates of several."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from vr1.commands.sweep.plan import Plan
from vr1.commands.sweep.trial import Trial
from vr1.runs.figures import picture_of

_LOG_FROM = 20.0


def draw_trials(plan: Plan, trials: Sequence[Trial]) -> Image.Image | None:
    """Draw the finished trials; None if there are none.

    A parameter whose largest value is at least 20 times its smallest is drawn on a logarithmic scale.
    """
    finished = [trial for trial in trials if trial.value is not None]
    if not finished:
        return None
    varied = [name for name in plan.parameters if len({str(trial.parameters.get(name)) for trial in finished}) > 1]
    shown = varied or list(plan.parameters)[:1]
    figure = Figure(figsize=(max(6.4, 2.3 * (len(shown) + 1)), 4.8), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    if len(shown) == 1:
        _scatter(axes, shown[0], plan.metric, finished)
    else:
        _parallel(axes, shown, plan, finished)
    axes.set_title(f"{plan.name}: {len(finished)} of {len(trials)} trials", loc="left", fontweight="bold", fontsize=11)
    return picture_of(figure)


def _scatter(axes: Axes, name: str, metric: str, trials: Sequence[Trial]) -> None:
    places, ticks, logarithmic = _scale([trial.parameters.get(name) for trial in trials])
    axes.scatter(places, [trial.value or 0.0 for trial in trials], color="#1971c2", s=36)
    for place, trial in zip(places, trials, strict=True):
        axes.annotate(str(trial.number), (place, trial.value or 0.0), xytext=(5, 4), textcoords="offset points", size=8)
    axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
    axes.set_xlabel(name + (" (logarithmic)" if logarithmic else ""))
    axes.set_ylabel(metric)
    axes.grid(alpha=0.25)


def _parallel(axes: Axes, names: Sequence[str], plan: Plan, trials: Sequence[Trial]) -> None:
    values = np.array([trial.value for trial in trials], dtype=np.float64)
    columns = [_scale([trial.parameters.get(name) for trial in trials]) for name in names]
    columns.append(_scale([trial.value for trial in trials]))
    rows = np.array([places for places, _, _ in columns]).T
    quality = _unit(values if plan.goal == "maximize" else -values)
    colours = matplotlib.colormaps["viridis"](0.92 * quality)
    # The best is drawn last, on top of all others.
    for index in np.argsort(quality):
        axes.plot(range(len(columns)), rows[index], color=colours[index], linewidth=1 + 1.6 * quality[index], alpha=0.9)
    for column, (_, ticks, _) in enumerate(columns):
        axes.axvline(column, color="#868e96", linewidth=1)
        for place, text in ticks:
            behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
            axes.annotate(
                text, (column, place), xytext=(5, 0), textcoords="offset points", va="center", size=8, bbox=behind
            )
    labels = [
        _broken(name) + ("\n(logarithmic)" if column[2] else "") for name, column in zip(names, columns, strict=False)
    ]
    axes.set_xticks(range(len(columns)), [*labels, plan.metric], fontsize=8)
    axes.set_yticks([])
    axes.set_ylim(-0.06, 1.06)
    axes.set_xlim(-0.15, len(columns) - 0.55)
    axes.spines[:].set_visible(False)


def _scale(values: Sequence[Any]) -> tuple[np.ndarray, list[tuple[float, str]], bool]:
    """Positions of values in 0..1, tick positions with their texts, and whether the scale is logarithmic."""
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not numeric:
        kinds = sorted({str(value) for value in values})
        places = np.array([kinds.index(str(value)) for value in values]) / max(1, len(kinds) - 1)
        return places, [(index / max(1, len(kinds) - 1), kind) for index, kind in enumerate(kinds)], False
    numbers = np.array(values, dtype=np.float64)
    logarithmic = bool(numbers.min() > 0 and numbers.max() >= _LOG_FROM * numbers.min())
    places = _unit(np.log(numbers) if logarithmic else numbers)
    by_place = sorted(dict(zip(places.tolist(), numbers.tolist(), strict=True)).items())
    ticks = [by_place[0]]
    for item in by_place[1:]:
        if item[0] - ticks[-1][0] >= 0.07:
            ticks.append(item)
    return places, [(place, f"{number:.4g}") for place, number in ticks], logarithmic


def _unit(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return np.full(len(values), 0.5) if math.isclose(low, high) else (values - low) / (high - low)


def _broken(name: str) -> str:
    """A long setting name over several lines."""
    return ".\n".join(name.rsplit(".", 2))
