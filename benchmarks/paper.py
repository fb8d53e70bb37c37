"""The paper in miniature: its trainings and ablations on made scenes, three seeds each, beside its own numbers.

    python benchmarks/paper.py --out runs/paper --jobs 2

Trains the embedded model by SFT, by Vision-R1, and by Vision-R1 with one thing changed at a time; measures each at the
end of its training, on scenes of the same kind and on a domain that no training has seen; and writes ``paper.md``,
``findings.png``, ``curves.png`` and ``runs.json``. Nothing is chosen by these measurements: every training has the same
number of steps. A finished run is not repeated, and an interrupted one goes on from its newest checkpoint: give the
same command again.
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
Name = Literal["sft", "sft_sorted", "vision_r1", "step_third", "no_refinement", "precision_only", "box_and_label"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training and its measurement, or the measurement of the start alone.

    Attributes:
        name: of its folder.
        folder: where all of it is.
        train: words of the training; none for the start.
        test: words of the measurement.
        threads: of the process.
    """

    name: str
    folder: Path
    train: list[str]
    test: list[str]
    threads: int

    @property
    def result(self) -> Path:
        """What is there once the job is finished."""
        return self.folder / "result.json"


class RunError(Exception):
    """A command did not end well; says where its output is."""


def paper(
    out: Path = Path("runs/paper"),
    jobs: int = 1,
    steps: int = 100,
    seeds: list[int] = [0, 1, 2],  # noqa: B006 - jsonargparse shows list defaults, none is changed
    only: list[Name] | None = None,
    overrides: list[str] = [],  # noqa: B006
    test_overrides: list[str] = [],  # noqa: B006
) -> int:
    """Run what is still to be run, and write the tables of what is there.

    Args:
        out: folder of all runs, tables and pictures.
        jobs: runs at a time, which share the cores evenly.
        steps: optimizer steps of every training.
        seeds: seeds of every training.
        only: trainings to run; all where left out.
        overrides: further words for every training, such as `["--data.val_scenes", "16"]`.
        test_overrides: further words for every measurement.

    Returns:
        Exit status: 0; 1 if a run failed, 130 if interrupted.
    """
    if jobs < 1 or steps < 1 or not seeds:
        raise SystemExit(f"--jobs {jobs}, --steps {steps} and the number of --seeds must be at least 1")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    chosen = {name: VARIANTS[name] for name in only or VARIANTS}
    queue = [_start(out.resolve(), threads, test_overrides)]
    # Seed by seed, so that the first table of all variants is there after a third of the time.
    queue += [
        _job(variant, seed, out.resolve(), steps, threads, overrides, test_overrides)
        for seed in seeds
        for variant in chosen.values()
    ]
    try:
        failures = asyncio.run(_run_all(queue, jobs))
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it was", file=sys.stderr)
        return 130
    finally:
        write(out.resolve(), steps)
    print(f"\n{(out / 'paper.md').read_text() if (out / 'paper.md').is_file() else 'Nothing is finished.'}")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def _start(out: Path, threads: int, overrides: list[str]) -> Job:
    folder = out / START
    return Job(name=START, folder=folder, train=[], test=_test(folder, overrides), threads=threads)


def _job(
    variant: Variant, seed: int, out: Path, steps: int, threads: int, overrides: list[str], test_overrides: list[str]
) -> Job:
    folder = out / f"{variant.name}_{seed}"
    words = [sys.executable, "-m", "vr1", "fit"]
    for config in ("training", *variant.configs):
        words += ["--config", str(CONFIGS / f"{config}.yaml")]
    words += ["--seed_everything", str(seed), "--trainer.max_steps", str(steps)]
    words += ["--trainer.default_root_dir", str(folder), "--trainer.logger.save_dir", str(out)]
    words += ["--trainer.logger.version", folder.name, *variant.words, *overrides]
    test = _test(folder, [*test_overrides, "--model.policy.path", str(folder / "model")])
    return Job(name=folder.name, folder=folder, train=words, test=test, threads=threads)


def _test(folder: Path, overrides: list[str]) -> list[str]:
    words = [sys.executable, "-m", "vr1", "test", "--config", str(CONFIGS / "evaluation.yaml")]
    return [*words, "--trainer.default_root_dir", str(folder), *overrides]


async def _run_all(queue: list[Job], jobs: int) -> list[str]:
    """Run all jobs, so many at a time; what failed."""
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
    """Do what is left of a job.

    Raises:
        RunError: a command failed, or the folder holds a run with other settings.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    _same_settings(job)
    if job.result.is_file():
        print(f"{job.name}: finished before, kept", flush=True)
        return
    started, trained = time.monotonic(), job.folder / "trained.json"
    if job.train and not trained.is_file():
        found = sorted((job.folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
        print(f"{job.name}: {f'going on from {found[-1].name}' if found else 'training'}", flush=True)
        await _call([*job.train, *(["--ckpt_path", str(found[-1])] if found else [])], job)
        _write_json(trained, {"seconds": round(time.monotonic() - started), "resumed": bool(found)})
    await _call(job.test, job)
    measured = json.loads((job.folder / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    _write_json(job.result, {"sets": measured["sets"], "seconds": round(time.monotonic() - started)})
    # The model is beside them; eighteen optimizers are a gigabyte.
    shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)
    mean = ", ".join(f"{name} mAP {100 * figures['map']:.1f}" for name, figures in measured["sets"].items())
    print(f"{job.name}: {mean} after {time.monotonic() - started:.0f} s", flush=True)


def _same_settings(job: Job) -> None:
    """Refuse to take the run of other settings for this one."""
    kept, settings = job.folder / "settings.json", {"train": job.train[1:], "test": job.test[1:]}
    if kept.is_file() and json.loads(kept.read_text(encoding="utf-8")) != settings:
        raise RunError(f"{job.folder} holds a run with other settings: give another --out, or remove that folder")
    _write_json(kept, settings)


async def _call(words: list[str], job: Job) -> None:
    with (job.folder / "output.txt").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *words,
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
        raise RunError(f"{words[3]} ended with status {code}; its output is in {job.folder / 'output.txt'}")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write in one stroke: half a file would make a run look finished."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def write(out: Path, steps: int) -> None:
    """Write tables and pictures of all finished runs in a folder."""
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
