"""GRPO, with credit for each box and the average of the weights or without, SFT, and both at once on the same images.

Each is taken at its best learning rate and with early stopping.

    python benchmarks/grpo_against_sft.py --out runs/grpo_against_sft

SFT learns the boxes in the order in which they are annotated (here: drawn), as data sets come, and in a run of its own
sorted from left to right, the order that the embedded model was trained with. Every run starts from the same model. For
each method the learning rate and the number of steps with the best mean validation mAP over the seeds are chosen. A run
that is there already is not repeated, so an interrupted comparison goes on where it was. Writes ``table.md`` and
``runs.json``.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jsonargparse import auto_cli

from vr1.runs.tables import markdown_table

METRICS = ("val/map", "val/map_50", "val/map_75", "val/map_ranked", "val/valid_rate")


def run(
    config: str, folder: Path, lr: float, seed: int, overrides: list[str], threads: int
) -> dict[int, dict[str, float]]:
    """Train once, unless the results exist; validation metrics by optimizer step."""
    done = folder / "validations.json"
    if not done.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "vr1", "fit", "--config", config, "--seed_everything", str(seed)]
        command += ["--model.optimizer.lr", str(lr), "--trainer.default_root_dir", str(folder)]
        command += ["--trainer.logger", "false", *overrides]
        with (folder / "log.txt").open("w") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=environment)
        table = json.loads((folder / "before_after.json").read_text())
        done.write_text(
            json.dumps({item["step"]: item["metrics"] for item in [table["before"], *table["validations"]]})
        )
    return {int(step): metrics for step, metrics in json.loads(done.read_text()).items()}


def _folder(method: str, lr: float, seed: int) -> str:
    return f"{method.lower().replace(',', '').replace(' ', '_')}_{lr:g}_{seed}"


def best(results: dict[tuple[float, int], dict[int, dict[str, float]]]) -> tuple[float, int]:
    """The learning rate and step of the best mean validation mAP over the seeds."""
    means: dict[tuple[float, int], list[float]] = defaultdict(list)
    for (lr, _), validations in results.items():
        for step, metrics in validations.items():
            means[lr, step].append(metrics["val/map"])
    return max(means, key=lambda choice: statistics.mean(means[choice]))


def compare(
    out: Path = Path("runs/grpo_against_sft"),
    grpo_lrs: list[float] = [4e-5],  # noqa: B006 - jsonargparse shows list defaults, none is changed
    warm_lrs: list[float] = [1e-5, 2e-5],  # noqa: B006
    sft_lrs: list[float] = [1e-5, 3e-5, 1e-4, 3e-4],  # noqa: B006
    seeds: list[int] = [0, 1, 2],  # noqa: B006
    jobs: int = 1,
    overrides: list[str] = [],  # noqa: B006
) -> None:
    """Run the comparison.

    Args:
        out: folder of all runs and of the table.
        grpo_lrs: learning rates of GRPO; none leaves it out.
        warm_lrs: learning rates of GRPO after 60 steps of SFT on sorted boxes at 1e-4; none leaves it out.
        sft_lrs: learning rates of SFT; none leaves it out.
        seeds: seeds of every choice.
        jobs: runs at a time, which share the cores evenly.
        overrides: further command-line arguments for every run, such as `["--trainer.max_steps", "60"]`.
    """
    rows = []
    everything = {}
    latest = ["--trainer.callbacks.decay", "0"]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    for method, (config, lrs, arguments) in {
        # The demo's last callback is the average of the weights; with a decay of 0 it is the latest weights.
        "GRPO": ("configs/demo.yaml", grpo_lrs, ["--model.advantage", "GroupAdvantage", *latest]),
        "GRPO box credit": ("configs/demo.yaml", grpo_lrs, latest),
        "GRPO box credit, average": ("configs/demo.yaml", grpo_lrs, []),
        "GRPO box credit, average, SFT at once": ("configs/demo.yaml", grpo_lrs, ["--model.supervised.weight", "0.3"]),
        "SFT then GRPO box credit, average": (
            "configs/demo.yaml",
            warm_lrs,
            ["--model.warm_start.steps", "60", "--model.warm_start.lr", "1e-4"],
        ),
        "SFT annotated": ("configs/demo_sft.yaml", sft_lrs, ["--model.target_order", "annotated"]),
        "SFT sorted": ("configs/demo_sft.yaml", sft_lrs, ["--model.target_order", "sorted"]),
        "SFT sorted, average": (
            "configs/demo_sft.yaml",
            sft_lrs,
            ["--model.target_order", "sorted", "--trainer.callbacks+", "callbacks.WeightAverage"],
        ),
    }.items():
        if not lrs:
            continue
        choices = list(itertools.product(lrs, seeds))
        with ThreadPoolExecutor(jobs) as pool:
            waiting = {
                (lr, seed): pool.submit(
                    run, config, out / _folder(method, lr, seed), lr, seed, [*arguments, *overrides], threads
                )
                for lr, seed in choices
            }
            results = {choice: future.result() for choice, future in waiting.items()}
        everything[method] = {f"{lr:g}/{seed}": value for (lr, seed), value in results.items()}
        lr, step = best(results)
        for moment, name in ((0, "start"), (step, method)):
            chosen = [results[lr, seed][moment] for seed in seeds]
            cells = [
                f"{statistics.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"
                for values in ([metrics[metric] for metrics in chosen] for metric in METRICS)
            ]
            rows.append([name, f"{lr:g}", str(moment), *cells])
    table = markdown_table(["method", "lr", "steps", *METRICS], rows)
    (out / "table.md").write_text(table + "\n")
    (out / "runs.json").write_text(json.dumps(everything, indent=1))
    print(table)


if __name__ == "__main__":
    auto_cli(compare, as_positional=False)
