"""How time and memory of vr1's GRPO step grow with the group, the image, the completions and the model.

    python benchmarks/scaling.py --out runs/scaling

Every setting is varied by itself around ``step.py``'s own, each measured in processes of their own as ``step.py`` does,
so that ``--sides [ours,theirs]`` puts TRL beside vr1. Writes ``scaling.md``, ``scaling.json`` and ``scaling.png``.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
from grpo_step import StepSettings
from grpo_step.measure import NAMES, compare, figures
from jsonargparse import auto_cli

from vr1.runs.tables import markdown_table

TRAINING = ("policy forward", "policy backward")


def variations(base: StepSettings) -> dict[str, list[tuple[str, StepSettings]]]:
    """The settings to measure, by what is varied: the value as text, and the settings."""
    shapes = ["embedded", "24m"] if base.device == "cpu" else ["24m", "qwen2.5-vl-3b", "qwen2.5-vl-7b"]
    text = base.prompt_tokens - base.image[0] * base.image[1] // 28**2
    images = {side: text + (side // 28) ** 2 for side in (224, 448, 672)}
    return {
        "group size": [(str(group), replace(base, group_size=group)) for group in (2, 4, 8, 16)],
        "image side, px": [
            (str(side), replace(base, image=(side, side), prompt_tokens=tokens)) for side, tokens in images.items()
        ],
        "completion tokens": [(str(tokens), replace(base, new_tokens=tokens)) for tokens in (32, 64, 128, 256)],
        "model": [(shape, replace(base, shape=shape)) for shape in shapes],  # type: ignore[arg-type]
    }


def table(measured: dict[str, dict[str, Any]], sides: list[str]) -> str:
    """The measurements as Markdown, and the growth of the training pass compared with that of its tokens."""
    head = ["varied", "value", "side", "step, s", "rollout, s", "training pass, s", "tokens / s", "peak, GB"]
    rows = []
    for varied, values in measured.items():
        for value, one in values.items():
            for side in sides:
                parts = one["parts"][side]
                rollout = sum(seconds for name, seconds in parts.items() if "prefill" in name or "decode" in name)
                seconds = (one["step_seconds"][side], rollout, _training(one, side))
                rows.append([varied, value, NAMES[side], *(f"{part:.2f}" for part in seconds)])
                rows[-1] += [f"{one['tokens_per_second'][side]:.0f}", f"{one['peak_bytes'][side] / 1e9:.2f}"]
    lines = [markdown_table(head, rows)]
    groups = measured.get("group size", {})
    if {"4", "16"} <= groups.keys() and "ours" in sides:
        small, large = groups["4"], groups["16"]
        prompt, each = small["settings"]["prompt_tokens"], small["settings"]["new_tokens"]
        bound = (prompt + 16 * each) / (prompt + 4 * each)
        grown = _training(large, "ours") / _training(small, "ours")
        lines += ["", f"training pass of vr1, G = 16 / G = 4: {grown:.2f} times, its tokens {bound:.2f} times"]
    return "\n".join(lines)


def _training(one: dict[str, Any], side: str) -> float:
    return sum(one["parts"][side][name] for name in TRAINING)


def draw(measured: dict[str, dict[str, Any]], sides: list[str], path: Path) -> None:
    """Draw one column for each varied setting: time above, memory below."""
    figure, axes = plt.subplots(
        2, len(measured), figsize=(3.2 * len(measured), 5.2), squeeze=False, layout="constrained"
    )
    colors = {"ours": "#1f6fb2", "theirs": "#b5651d"}
    for column, (varied, values) in enumerate(measured.items()):
        for side in sides:
            rows = (
                [one["step_seconds"][side] for one in values.values()],
                [one["peak_bytes"][side] / 1e9 for one in values.values()],
            )
            for axis, heights in zip(axes[:, column], rows, strict=True):
                axis.plot([*values], heights, marker="o", color=colors[side], label=NAMES[side])
        axes[1, column].set_xlabel(varied)
    axes[0, 0].set_ylabel("seconds a step")
    axes[1, 0].set_ylabel("peak memory, GB")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
        axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
        axis.margins(x=0.12)
    if len(sides) > 1:
        axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(
    out: Path = Path("runs/scaling"),
    base: StepSettings = StepSettings(),  # noqa: B008 - frozen
    rounds: int = 3,
    sides: list[Literal["ours", "theirs"]] = ["ours"],  # noqa: B006 - jsonargparse shows list defaults, none is changed
    varied: list[str] = ["group size", "image side, px", "completion tokens", "model"],  # noqa: B006
) -> None:
    """Measure, and write a table and a figure.

    Args:
        out: folder of the results; what it already holds is not measured again.
        base: the settings around which one at a time is varied.
        rounds: steps that count of each.
        sides: whose steps.
        varied: what is varied.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / "scaling.json"
    measured: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else {}
    for name, values in variations(base).items():
        for value, settings in values if name in varied else ():
            if value in measured.setdefault(name, {}):
                continue
            print(f"{name} {value}", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                measured[name][value] = figures(settings, compare(settings, rounds, list(sides), Path(folder)))
            file.write_text(json.dumps(measured, indent=1))
    measured = {name: values for name, values in measured.items() if values}
    text = table(measured, list(sides))
    (out / "scaling.md").write_text(text + "\n")
    draw(measured, list(sides), out / "scaling.png")
    print(text)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
