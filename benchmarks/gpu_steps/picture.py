"""``results.json`` as a picture: ways to decode a token, and a step of training beside TRL's."""

import json
from pathlib import Path
from typing import Any

_OURS, _OTHER, _PARTS = "#1f77b4", "#9aa5b1", ("#1f77b4", "#5fa2d3", "#a6cbe8")


def draw(file: Path, out: Path) -> None:
    """Write the picture.

    Args:
        file: a ``results.json`` with the steps ``decoding``, ``training`` and ``trl``.
        out: the picture, by its ending PNG or SVG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results: dict[str, dict[str, Any]] = json.loads(file.read_text())
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 2.9), layout="constrained")
    _decoding(left, results["decoding"]["bf16 + LoRA"])
    _step(right, results)
    device = results["hardware"]["device"]["name"]
    figure.suptitle(f"Qwen2.5-VL-7B in bfloat16 with adapters, one {device}", fontsize=11)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def _decoding(axes: Any, found: dict[str, Any]) -> None:
    more = found["8 rows, more"]
    ways = {
        "transformers' layers": more["layers of transformers"],
        "vr1's layers": more["eager"],
        "the same as a CUDA graph": more["graph, torch's operators"],
        "and with vr1's kernels": found["8 rows"],
    }
    times = [way["ms_per_token"] for way in ways.values()]
    bars = axes.barh(list(ways), times, color=[_OTHER, *[_OURS] * 3])
    axes.bar_label(bars, [f"{time:.1f}" for time in times], padding=3, fontsize=9)
    bound = found["8 rows"]["bound_ms"]
    axes.axvline(bound, color="black", linestyle="--", linewidth=1, label=f"reading the weights: {bound:.1f}")
    axes.legend(loc="lower right", fontsize=9, frameon=False)
    axes.set(xlabel="milliseconds", title="One token of 8 completions", xlim=(0, max(times) * 1.15))
    _plain(axes)


def _step(axes: Any, results: dict[str, dict[str, Any]]) -> None:
    theirs = results["trl"]
    ours = results["training"][theirs["case"]]["steps"][-1]
    parts = {"rollout": ours["rollout"], "reference": ours["reference"], "policy": ours["policy"] + ours["reward"]}
    axes.barh("TRL", theirs["step_seconds"][-1], color=_OTHER)
    start = 0.0
    for (name, seconds), color in zip(parts.items(), _PARTS, strict=True):
        axes.barh("vr1", seconds, left=start, color=color, label=name)
        start += seconds
    labels = {"TRL": (theirs["step_seconds"][-1], theirs["peak_gb"]), "vr1": (ours["seconds"], ours["peak_gb"])}
    for row, (seconds, memory) in labels.items():
        axes.text(seconds + 0.2, row, f"{seconds:.1f} s, {memory:.0f} GB", va="center", fontsize=9)
    axes.set(
        xlabel="seconds", title="A step of 4 prompts, 8 completions of 128 tokens", xlim=(0, labels["TRL"][0] * 1.25)
    )
    axes.legend(loc="lower right", fontsize=9, frameon=False)
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(10)
    axes.invert_yaxis()
