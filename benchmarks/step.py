"""A whole GRPO step of vr1 against TRL's ``GRPOTrainer``: time, its parts, and peak memory.

    python benchmarks/step.py --group_size 8 --json step.json

Both sides train the same weights on the same images and questions with the same optimizer, group size and KL term, and
every completion has exactly ``new_tokens`` tokens: the model's end token is its image token, which neither of them ever
samples. Each runs its own trainer (Lightning's, transformers') in a separate process, so that its memory can be
measured, and they take turns step by step. The first round is not counted. Needs TRL: ``pip install -e ".[bench]"``.
"""

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from grpo_step import StepSettings
from grpo_step.measure import NAMES, compare, figures
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from vr1.runs.tables import markdown_table


def table(measured: dict[str, Any]) -> str:
    """The measurements as a Markdown table."""
    sides = list(measured["step_seconds"])
    rows = []

    def row(name: str, cells: dict[str, str]) -> None:
        rows.append([name, *(cells.get(side, "") for side in sides)])

    row("step, s", {side: f"{value:.2f}" for side, value in measured["step_seconds"].items()})
    for part in dict.fromkeys(name for side in sides for name in measured["parts"][side]):
        row(
            f"- {part}, s",
            {side: f"{measured['parts'][side][part]:.3f}" for side in sides if part in measured["parts"][side]},
        )
    row("processor time, s", {side: f"{value:.2f}" for side, value in measured["processor_seconds"].items()})
    row("completion tokens / s", {side: f"{value:.0f}" for side, value in measured["tokens_per_second"].items()})
    row("peak memory, GB", {side: f"{value / 1e9:.2f}" for side, value in measured["peak_bytes"].items()})
    lines = [markdown_table(["", *(NAMES[side] for side in sides)], rows)]
    if measured["step_time_ratio"] is not None:
        lines += [
            "",
            f"step time, TRL / vr1: {measured['step_time_ratio']:.2f} (processor time"
            f" {measured['processor_time_ratio']:.2f}); peak memory, vr1 / TRL:"
            f" {measured['peak_memory_ratio']:.2f}",
        ]
    return "\n".join(lines)


def parser() -> ArgumentParser:
    """Options of the command line."""
    options = ArgumentParser(description=__doc__, formatter_class=DefaultHelpFormatter)
    options.add_class_arguments(StepSettings)
    options.add_argument("--rounds", type=int, default=5, help="steps of each side that count")
    options.add_argument(
        "--sides", type=list[Literal["ours", "theirs"]], default=["ours", "theirs"], help="which sides run"
    )
    options.add_argument("--json", type=Path | None, default=None, help="file for the measurements")
    return options


def main() -> None:
    """Measure and print."""
    options = parser().parse_args()
    settings = StepSettings(
        **{name: value for name, value in vars(options).items() if name not in {"rounds", "sides", "json"}}
    )
    if "theirs" in options.sides and find_spec("trl") is None:
        raise SystemExit("step: TRL is not installed; pip install -e '.[bench]', or measure one side: --sides [ours]")
    with tempfile.TemporaryDirectory() as folder:
        measured = figures(settings, compare(settings, options.rounds, options.sides, Path(folder)))
    print(table(measured))
    if options.json is not None:
        options.json.write_text(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
