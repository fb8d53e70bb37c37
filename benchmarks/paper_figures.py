"""Figures of the paper in miniature: gains here and in the paper, and training curves."""

import json
import statistics
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from paper_findings import PAPER_SEEN, PAPER_UNSEEN, START, VARIANTS, Results
from PIL import Image

from vr1.runs.figures import picture_of

_COLOURS = (
    *("#1971c2", "#d9480f", "#2b8a3e", "#9c36b5", "#0c8599", "#b35c00"),
    *("#c2255c", "#5c940d", "#495057", "#e67700", "#364fc7", "#862e9c"),
)


def draw_findings(results: Results) -> Image.Image:
    """What each training gains over its start: here, seed by seed, and in the paper."""
    names = list(VARIANTS)
    figure = Figure(figsize=(12, 5.2), dpi=110, layout="constrained")
    panels = figure.subplots(1, 4, sharey=True)
    for axes, group in zip(panels[:2], ("seen", "unseen"), strict=True):
        start = statistics.mean(results[START][group]["map"])
        for row, name in enumerate(names):
            gains = [value - start for value in results.get(name, {}).get(group, {}).get("map", [])]
            if gains:
                axes.barh(row, statistics.mean(gains), color=_COLOURS[row], alpha=0.35)
                axes.scatter(gains, [row] * len(gains), color=_COLOURS[row], s=22, zorder=3)
        _label(axes, f"here, {group} domain", f"mAP over the start's {start:.1f}")
    for axes, numbers, title in ((panels[2], PAPER_SEEN, "COCO"), (panels[3], PAPER_UNSEEN, "unseen sets")):
        for shift, (model, found) in zip((-0.2, 0.2), numbers.items(), strict=True):
            rows = [row for row, name in enumerate(names) if name in found]
            gains = [found[names[row]] - found[START] for row in rows]
            colour = "#495057" if shift < 0 else "#adb5bd"
            axes.barh(np.array(rows) + shift, gains, height=0.38, color=colour, label=model)
        _label(axes, f"paper, {title}", "mAP over the start")
    handles, labels = panels[2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    panels[0].set_yticks(range(len(names)), [VARIANTS[name].title for name in names])
    panels[0].invert_yaxis()
    return picture_of(figure)


def draw_curves(out: Path) -> Image.Image | None:
    """Validation mAP and training reward by optimizer step, mean and range over the seeds; None without runs."""
    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2)
    drawn = False
    for axes, metric in zip(panels, ("val/map", "reward/total"), strict=True):
        for row, name in enumerate(VARIANTS):
            paths = sorted(out.glob(f"{name}_[0-9]*/curves.json"))
            series = [json.loads(path.read_text(encoding="utf-8"))["series"].get(metric, []) for path in paths]
            drawn = _draw_mean(axes, [points for points in series if points], VARIANTS[name].title, row) or drawn
        axes.set_title(metric, loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if not drawn:
        return None
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return picture_of(figure)


def _draw_mean(axes: Axes, series: list[list[list[float]]], title: str, row: int) -> bool:
    """Draw the mean of several seeds at the steps that all of them have logged."""
    steps = sorted(set.intersection(*({int(step) for step, _ in points} for points in series))) if series else []
    if not steps:
        return False
    by_step = [{int(step): value for step, value in points} for points in series]
    values = np.array([[values[step] for step in steps] for values in by_step])
    width = max(1, len(steps) // 12) if len(steps) > 24 else 1
    smooth = np.apply_along_axis(np.convolve, 1, values, np.ones(width) / width, mode="valid")
    places = steps[width // 2 : width // 2 + smooth.shape[1]]
    axes.plot(places, smooth.mean(axis=0), color=_COLOURS[row], label=title, linewidth=1.8)
    axes.fill_between(places, smooth.min(axis=0), smooth.max(axis=0), color=_COLOURS[row], alpha=0.12, linewidth=0)
    return True


def _label(axes: Axes, title: str, below: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel(below, fontsize=9)
    axes.axvline(0, color="#868e96", linewidth=1)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
