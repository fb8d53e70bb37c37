"""The paper in miniature: its trainings and ablations on synthetic scenes, three seeds each, next to its own numbers.

    python benchmarks/paper.py --out runs/paper --jobs 2

Trains the embedded model by SFT, by Vision-R1, and by Vision-R1 with one setting changed at a time; evaluates each at
the end of its training, on scenes of the same kind and on an unseen domain; and writes ``paper.md``, ``findings.png``,
``curves.png`` and ``runs.json``. No setting is tuned on these measurements: every training has the same number of
steps. The same command resumes an interrupted run from its latest checkpoint and skips finished runs.
"""

import asyncio
import json
import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from jsonargparse import auto_cli
from paper_figures import draw_curves, draw_findings
from paper_findings import METRICS, START, VARIANTS, Results, Variant, markdown

from vr1.distributed import die_with_parent

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "paper"
Name = Literal[
    "sft",
    "sft_sorted",
    "vision_r1",
    "step_third",
    "no_refinement",
    "precision_only",
    "box_and_label",
    "box_credit",
    "supervised_term",
    "sft_average",
    "warm_start",
    "warm_start_step",
]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training and its evaluation, or the evaluation of the start.

    Attributes:
        name: name of its folder.
        folder: its folder.
        train: command of the training; empty for the start.
        test: command of the evaluation.
        threads: threads of the process.
    """

    name: str
    folder: Path
    train: list[str]
    test: list[str]
    threads: int

    @property
    def result(self) -> Path:
        """The file that exists once the job is finished."""
        return self.folder / "result.json"


class RunError(Exception):
    """A command failed; the message names the file with its output."""


def paper(
    out: Path = Path("runs/paper"),
    jobs: int = 1,
    steps: int = 100,
    seeds: list[int] = [0, 1, 2],  # noqa: B006 - jsonargparse shows list defaults, none is changed
    only: list[Name] | None = None,
    overrides: list[str] = [],  # noqa: B006
    test_overrides: list[str] = [],  # noqa: B006
) -> int:
    """Run the jobs that are not finished and write the tables of all finished ones.

    Args:
        out: folder of all runs, tables and figures.
        jobs: number of runs at a time, which share the cores evenly.
        steps: optimizer steps of every training.
        seeds: seeds of every training.
        only: trainings to run; all by default.
        overrides: further arguments of every training, such as `["--data.val_scenes", "16"]`.
        test_overrides: further arguments of every evaluation.

    Returns:
        Exit status: 0; 1 if a run failed, 130 if interrupted.
    """
    if jobs < 1 or steps < 1 or not seeds:
        raise SystemExit(f"--jobs {jobs}, --steps {steps} and the number of --seeds must be at least 1")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    chosen = {name: VARIANTS[name] for name in only or VARIANTS}
    queue = [start_job(out.resolve(), threads, test_overrides)]
    # Seed by seed, so that there is a table of all variants after a third of the time.
    queue += [
        training_job(variant, seed, out.resolve(), steps, threads, overrides, test_overrides)
        for seed in seeds
        for variant in chosen.values()
    ]
    try:
        failures = asyncio.run(_run_all(queue, jobs))
    except KeyboardInterrupt:
        print("interrupted: the same command resumes", file=sys.stderr)
        return 130
    finally:
        write(out.resolve(), steps)
    print(f"\n{(out / 'paper.md').read_text() if (out / 'paper.md').is_file() else 'Nothing is finished.'}")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def start_job(out: Path, threads: int, overrides: list[str]) -> Job:
    """The test of the model that all trainings start from."""
    folder = out / START
    return Job(name=START, folder=folder, train=[], test=_test(folder, overrides), threads=threads)


def training_job(
    variant: Variant, seed: int, out: Path, steps: int, threads: int, overrides: list[str], test_overrides: list[str]
) -> Job:
    """A training of one variant with one seed, and the test of what it leaves."""
    folder = out / f"{variant.name}_{seed}"
    arguments = [sys.executable, "-m", "vr1", "fit"]
    for config in ("training", *variant.configs):
        arguments += ["--config", str(CONFIGS / f"{config}.yaml")]
    arguments += ["--seed_everything", str(seed), "--trainer.max_steps", str(steps)]
    arguments += ["--trainer.default_root_dir", str(folder), "--trainer.logger.save_dir", str(out)]
    arguments += ["--trainer.logger.version", folder.name, *variant.arguments, *overrides]
    test = _test(folder, [*test_overrides, "--model.policy.path", str(folder / "model")])
    return Job(name=folder.name, folder=folder, train=arguments, test=test, threads=threads)


def _test(folder: Path, overrides: list[str]) -> list[str]:
    arguments = [sys.executable, "-m", "vr1", "test", "--config", str(CONFIGS / "evaluation.yaml")]
    return [*arguments, "--trainer.default_root_dir", str(folder), *overrides]


async def _run_all(queue: list[Job], jobs: int) -> list[str]:
    """Run all jobs, a number of them at a time, and return the failures."""
    places = asyncio.Semaphore(jobs)

    async def run_in_turn(job: Job) -> str | None:
        async with places:
            try:
                await run(job)
            except RunError as failure:
                print(f"{job.name}: {failure}", flush=True)
                return f"{job.name}: {failure}"
        return None

    return [failure for failure in await asyncio.gather(*map(run_in_turn, queue)) if failure]


async def run(job: Job) -> None:
    """Run the parts of a job that are not finished.

    Raises:
        RunError: a command failed, or the folder has a run with other settings.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    _same_settings(job)
    if job.result.is_file():
        print(f"{job.name}: finished before", flush=True)
        return
    started, trained = time.monotonic(), job.folder / "trained.json"
    if job.train and not trained.is_file():
        checkpoints = sorted((job.folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
        print(f"{job.name}: {f'resuming from {checkpoints[-1].name}' if checkpoints else 'training'}", flush=True)
        await run_command([*job.train, *(["--ckpt_path", str(checkpoints[-1])] if checkpoints else [])], job)
        _write_json(trained, {"seconds": round(time.monotonic() - started), "resumed": bool(checkpoints)})
    await run_command(job.test, job)
    measured = json.loads((job.folder / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    _write_json(job.result, {"sets": measured["sets"], "seconds": round(time.monotonic() - started)})
    # The exported model stays; eighteen optimizer states take a gigabyte.
    shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)
    mean = ", ".join(f"{name} mAP {figures['map']:.3f}" for name, figures in measured["sets"].items())
    print(f"{job.name}: {mean} after {time.monotonic() - started:.0f} s", flush=True)


def _same_settings(job: Job) -> None:
    """Refuse a folder that has a run with other settings."""
    stored, settings = job.folder / "settings.json", {"train": job.train[1:], "test": job.test[1:]}
    if stored.is_file() and json.loads(stored.read_text(encoding="utf-8")) != settings:
        raise RunError(f"{job.folder} has a run with other settings: give another --out, or remove that folder")
    _write_json(stored, settings)


async def run_command(arguments: list[str], job: Job) -> None:
    """Run one command of a job, its output appended to ``output.txt`` in the job's folder."""
    with (job.folder / "output.txt").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            cwd=ROOT,
            stdout=log,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(job.threads)},
            preexec_fn=die_with_parent,
        )
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
    if code:
        raise RunError(f"{arguments[3]} ended with status {code}; its output is in {job.folder / 'output.txt'}")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write atomically: half a file would make a run look finished."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def write(out: Path, steps: int) -> None:
    """Write tables and figures of all finished runs in a folder."""
    results = read_results(out)
    if START not in results:
        return
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    head = f"`python benchmarks/paper.py`, {datetime.now(UTC):%Y-%m-%d}, {steps} steps a training, {machine}."
    (out / "paper.md").write_text(f"{head}\n\n{markdown(results)}", encoding="utf-8")
    (out / "runs.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw_findings(results).save(out / "findings.png")
    if (curves := draw_curves(out)) is not None:
        curves.save(out / "curves.png")


def read_results(out: Path) -> Results:
    """Figures by variant, set and metric: a value for each seed, in percent."""
    results: Results = {}
    for name in (START, *VARIANTS):
        for path in [out / START / "result.json"] if name == START else sorted(out.glob(f"{name}_[0-9]*/result.json")):
            for group, figures in json.loads(path.read_text(encoding="utf-8"))["sets"].items():
                for metric in METRICS:
                    results.setdefault(name, {}).setdefault(group, {}).setdefault(metric, []).append(
                        100 * figures[metric]
                    )
    return results


if __name__ == "__main__":
    sys.exit(auto_cli(paper, as_positional=False))
