"""What vr1's kernels in C save of a GRPO step on a CPU, against torch's operators.

    python benchmarks/cpu_kernels.py --group_size 8

Two trainers of vr1 take turns, as in ``step.py``, each in a process of its own: for one of them there is no C compiler.
The first round is not counted.
"""

import os
import statistics
import tempfile
from pathlib import Path
from unittest.mock import patch

from grpo_step import StepSettings, ours
from grpo_step.shapes import write_shape
from grpo_step.turns import Side, Turn
from jsonargparse import auto_cli

from vr1.runs.tables import markdown_table

_SIDES = {"torch's operators": {"CC": "off"}, "kernels": {}}


def compare(settings: StepSettings, rounds: int, folder: Path) -> dict[str, list[Turn]]:
    """The steps of each side in turns, without the first."""
    write_shape(settings.shape, folder, settings.device, settings.dtype)
    running = {}
    for name, environment in _SIDES.items():
        with patch.dict(os.environ, environment):
            running[name] = Side(ours.run, settings, folder, steps=rounds + 1)
    turns: dict[str, list[Turn]] = {name: [] for name in running}
    for number in range(rounds + 1):
        for name, side in running.items():
            turns[name].append(side.step())
        seconds = ", ".join(f"{name} {steps[-1].seconds:.2f} s" for name, steps in turns.items())
        print(f"round {number}{' (not counted)' if not number else ''}: {seconds}", flush=True)
    return {name: steps[1:] for name, steps in turns.items()}


def medians(turns: list[Turn]) -> dict[str, float]:
    """Seconds of a step and of its parts."""
    parts = {name: statistics.median(turn.parts[name] for turn in turns) for name in turns[0].parts}
    return {"step": statistics.median(turn.seconds for turn in turns), **parts}


def main(group_size: int = 8, rounds: int = 7, new_tokens: int = 64, lora: bool = False) -> None:
    """Measure.

    Args:
        group_size: completions of the prompt.
        rounds: steps of each side that count.
        new_tokens: tokens of each completion.
        lora: train adapters.
    """
    settings = StepSettings(group_size=group_size, new_tokens=new_tokens, lora=lora)
    with tempfile.TemporaryDirectory() as folder:
        turns = compare(settings, rounds, Path(folder))
    before, after = (medians(turns[name]) for name in _SIDES)
    rows = [[part, f"{before[part]:.3f}", f"{after[part]:.3f}", f"{after[part] / before[part]:.2f}"] for part in before]
    print(markdown_table(["s", *_SIDES, "ratio"], rows))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
