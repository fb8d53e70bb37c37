"""Steps of both sides in turns, and statistics of them."""

import statistics
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from grpo_step.settings import StepSettings
from grpo_step.shapes import write_shape
from grpo_step.turns import Side, Turn

NAMES = {"ours": "vr1", "theirs": "TRL"}


def compare(settings: StepSettings, rounds: int, sides: list[str], folder: Path) -> dict[str, list[Turn]]:
    """The steps of each side in turns, without the first."""
    write_shape(settings.shape, folder, settings.device, settings.dtype)
    if settings.device == "cuda":
        # Memory for making the weights would be missing on both sides.
        torch.cuda.empty_cache()
    running = {side: Side(import_module(f"grpo_step.{side}").run, settings, folder, steps=rounds + 1) for side in sides}
    turns: dict[str, list[Turn]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side in sides:
            turns[side].append(running[side].step())
        seconds = ", ".join(
            f"{NAMES[side]} {turns[side][-1].seconds:.2f} s ({turns[side][-1].busy_seconds:.2f} s of processor)"
            for side in sides
        )
        print(f"round {number}{' (not counted)' if not number else ''}: {seconds}", flush=True)
    return {side: steps[1:] for side, steps in turns.items()}


def figures(settings: StepSettings, turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """Medians, peaks and the ratios between the sides."""
    seconds = {side: statistics.median(turn.seconds for turn in steps) for side, steps in turns.items()}
    busy = {side: statistics.median(turn.busy_seconds for turn in steps) for side, steps in turns.items()}
    peaks = {side: max(turn.peak_bytes for turn in steps) for side, steps in turns.items()}
    parts = {
        side: {name: statistics.median(turn.parts[name] for turn in steps) for name in steps[0].parts}
        for side, steps in turns.items()
    }
    both = len(turns) == len(NAMES)
    return {
        "step_time_ratio": seconds["theirs"] / seconds["ours"] if both else None,
        "peak_memory_ratio": peaks["ours"] / peaks["theirs"] if both else None,
        "group_size": settings.group_size,
        "rounds": len(next(iter(turns.values()))),
        "parts": parts,
        "step_seconds": seconds,
        "processor_time_ratio": busy["theirs"] / busy["ours"] if both else None,
        "processor_seconds": busy,
        "all_step_seconds": {side: [turn.seconds for turn in steps] for side, steps in turns.items()},
        "peak_bytes": peaks,
        "tokens_per_second": {side: settings.tokens / value for side, value in seconds.items()},
        "settings": vars(settings),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if settings.device == "cuda" else "cpu",
        "versions": {name: version(name) for name in ("torch", "transformers", "trl") if find_spec(name)},
    }
