"""``python -m vr1 sweep``: the trials of a sweep, one after the other, on this machine."""

import contextlib
import fcntl
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from jsonargparse import ArgumentParser

from vr1.commands.sweep.draw import parameters_of
from vr1.commands.sweep.plan import Plan, read_plan
from vr1.commands.sweep.results import ranked, write_results
from vr1.commands.sweep.trial import Trial, read_trial, run_trial, trial_folder
from vr1.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Exit status: 0; 1 where every trial crashed; 2 after a message that says what is wrong; 130 where interrupted.
    """
    parser = ArgumentParser(
        allow_abbrev=False,
        prog="vr1 sweep",
        description="Run the trials of a sweep file here, without an account.",
    )
    parser.add_argument("sweep", type=str, help="A file such as configs/sweeps/training.yaml.")
    parser.add_function_arguments(run_sweep, skip={"path", "retry"})
    parser.add_argument("--retry", action="store_true", help="Run trials that crashed again too.")
    arguments = parser.parse_args(argv).as_dict()
    try:
        with _ended_as_interrupted():
            trials = run_sweep(Path(arguments.pop("sweep")), **arguments)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on with the trial that was running", file=sys.stderr)
        return 130
    return 0 if any(trial.state == "finished" for trial in trials) else 1


def run_sweep(
    path: Path,
    count: int | None = None,
    out: str | None = None,
    method: str | None = None,
    seed: int = 0,
    retry: bool = False,
) -> list[Trial]:
    """Run what is still to be run of a sweep, and sum up.

    Args:
        path: the sweep file.
        count: How many trials; those that were finished before count. A grid runs all its combinations without it.
        out: Folder of the sweep, a run folder for each trial in it. Where left out, runs/sweeps/NAME.
        method: Take grid or random instead of the file's own method.
        seed: Seed of the random draws: trial n of a seed is always the same.
        retry: run trials that crashed again too.

    Returns:
        All trials.

    Raises:
        UserError: if the file is faulty, or the folder belongs to another sweep or is in use.
        KeyboardInterrupt: if it was interrupted.
    """
    plan = read_plan(path, method)
    drawn = parameters_of(plan, count, seed)
    folder = Path(out) if out else Path("runs", "sweeps", plan.name)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _same_sweep(folder, path, plan)
        if plan.ends_early:
            print("early_terminate is heeded by Weights & Biases alone: here every trial runs to its end", flush=True)
        trials: list[Trial] = []
        try:
            for number, parameters in enumerate(drawn):
                trials.append(
                    _done(folder, number, parameters, retry) or _run(plan, folder, number, parameters, len(drawn))
                )
        finally:
            table = write_results(folder, plan, trials) if trials else ""
    print(f"\n{table}\n{_best(plan, trials, folder)}{folder / 'results.md'}, results.csv, results.png")
    return trials


def _run(plan: Plan, folder: Path, number: int, parameters: dict[str, Any], count: int) -> Trial:
    settings = ", ".join(f"{name}={value}" for name, value in parameters.items())
    print(f"trial {number} ({number + 1} of {count}): {settings}", flush=True)
    trial = run_trial(plan, Trial(number=number, parameters=parameters), trial_folder(folder, number))
    came = trial.problem if trial.value is None else f"{plan.metric} {trial.value:.4f}"
    print(f"  {trial.state} after {trial.seconds:.0f} s: {came}", flush=True)
    return trial


def _done(folder: Path, number: int, parameters: dict[str, Any], retry: bool) -> Trial | None:
    """The trial as it was run before, where it need not be run again."""
    trial = read_trial(trial_folder(folder, number))
    if trial is None or trial.state == "running" or (trial.state == "crashed" and retry):
        return None
    if trial.parameters != parameters:
        raise UserError(
            f"{trial_folder(folder, number)} was run with {trial.parameters}, and now it would be {parameters}: give"
            " the same --seed and --method, or another folder by --out"
        )
    print(f"trial {number}: {trial.state} before, kept", flush=True)
    return trial


def _same_sweep(folder: Path, path: Path, plan: Plan) -> None:
    """Refuse to mix the trials of two sweeps."""
    kept = folder / "sweep.yaml"
    if not kept.exists():
        kept.write_text(plan.text, encoding="utf-8")
    elif kept.read_text(encoding="utf-8") != plan.text:
        raise UserError(
            f"{folder} holds trials of another sweep than {path} now is: give another folder by --out, or remove it"
        )


def _best(plan: Plan, trials: Sequence[Trial], folder: Path) -> str:
    first = ranked(plan, trials)[0]
    if first.value is None:
        return "No trial finished.\n"
    words = " ".join(f"--{name}={value}" for name, value in first.parameters.items())
    command = trial_folder(folder, first.number) / "command.txt"
    return f"Best is trial {first.number}: {words}\nIts whole command is in {command}\n"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the lock goes with the process, however that ends."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder} is in use by another sweep; wait for it, or give another folder by --out"
            ) from None
        yield


@contextlib.contextmanager
def _ended_as_interrupted() -> Iterator[None]:
    """Treat a request to end as an interrupt, so that the running trial ends too."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
