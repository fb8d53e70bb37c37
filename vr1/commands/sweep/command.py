"""``python -m vr1 sweep``: run the trials of a sweep one after another on this machine."""

import contextlib
import fcntl
import shlex
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
from vr1.commands.sweep.trial import Trial, read_trial, run_trial, setting_arguments, trial_folder
from vr1.errors import UserError, report_user_error
from vr1.runs.tables import figure_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0; 1 if all trials crashed; 2 after a one-line message for an error that the user can fix; 130
        if interrupted.
    """
    parser = ArgumentParser(
        allow_abbrev=False,
        prog="vr1 sweep",
        description="Run the trials of a sweep file here, without an account.",
    )
    parser.add_argument("sweep", type=str, help="A file such as configs/sweeps/training.yaml.")
    parser.add_function_arguments(run_sweep, skip={"path", "retry"})
    parser.add_argument("--retry", action="store_true", help="Run crashed trials again.")
    arguments = parser.parse_args(argv).as_dict()
    try:
        with _sigterm_as_interrupt():
            trials = run_sweep(Path(arguments.pop("sweep")), **arguments)
    except KeyboardInterrupt:
        print("interrupted: the same command resumes with the trial that was running", file=sys.stderr)
        return 130
    except Exception as error:
        return report_user_error(parser.prog, error)
    return 0 if any(trial.state == "finished" for trial in trials) else 1


def run_sweep(
    path: Path,
    count: int | None = None,
    out: str | None = None,
    method: str | None = None,
    seed: int = 0,
    retry: bool = False,
) -> list[Trial]:
    """Run the trials of a sweep that are not finished and write the tables of all.

    Args:
        path: the sweep file.
        count: Number of trials, finished ones included. Without it a grid runs all combinations.
        out: Folder of the sweep, with a run folder for each trial; runs/sweeps/NAME by default.
        method: grid or random, instead of the method in the file.
        seed: Seed of random values: trial n of a seed always has the same values.
        retry: run crashed trials again.

    Returns:
        All trials.

    Raises:
        UserError: the file is faulty, or the folder belongs to another sweep or is in use.
        KeyboardInterrupt: the sweep was interrupted.
    """
    plan = read_plan(path, method)
    settings = parameters_of(plan, count, seed)
    folder = Path(out) if out else Path("runs", "sweeps", plan.name)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _same_sweep(folder, path, plan)
        if plan.ends_early:
            print("early_terminate works only with Weights & Biases: here every trial runs to its end", flush=True)
        if not plan.names_metric:
            print(f"the file names no metric: trials are compared by {plan.metric}, the highest first", flush=True)
        trials: list[Trial] = []
        try:
            for number, parameters in enumerate(settings):
                trials.append(
                    _done(folder, number, parameters, retry) or _run(plan, folder, number, parameters, len(settings))
                )
        finally:
            table = write_results(folder, plan, trials) if trials else ""
    print(f"\n{table}\n{_best(plan, trials, folder)}{folder / 'results.md'}, results.csv, results.png")
    return trials


def _run(plan: Plan, folder: Path, number: int, parameters: dict[str, Any], count: int) -> Trial:
    settings = ", ".join(argument.removeprefix("--") for argument in setting_arguments(parameters))
    print(f"trial {number} ({number + 1} of {count}): {settings}", flush=True)
    trial = run_trial(plan, Trial(number=number, parameters=parameters), trial_folder(folder, number))
    result = trial.problem or "done" if trial.value is None else f"{plan.metric} {figure_text(trial.value)}"
    print(f"  {trial.state} after {trial.seconds:.0f} s: {result}", flush=True)
    return trial


def _done(folder: Path, number: int, parameters: dict[str, Any], retry: bool) -> Trial | None:
    """The trial of an earlier command, if it does not have to be run again."""
    trial = read_trial(trial_folder(folder, number))
    if trial is None or trial.state == "running" or (trial.state == "crashed" and retry):
        return None
    if trial.parameters != parameters:
        raise UserError(
            f"{trial_folder(folder, number)} was run with {trial.parameters}, now it has {parameters}: give"
            " the same --seed and --method, or another folder by --out"
        )
    print(f"trial {number}: {trial.state} before", flush=True)
    return trial


def _same_sweep(folder: Path, path: Path, plan: Plan) -> None:
    """Refuse a folder that has the trials of another sweep file."""
    stored = folder / "sweep.yaml"
    if not stored.exists():
        stored.write_text(plan.text, encoding="utf-8")
    elif stored.read_text(encoding="utf-8") != plan.text:
        raise UserError(
            f"{folder} has trials of another sweep file than {path} now is: give another --out, or remove it"
        )


def _best(plan: Plan, trials: Sequence[Trial], folder: Path) -> str:
    first = ranked(plan, trials)[0]
    if first.value is None:
        if any(trial.state == "finished" for trial in trials):
            return f"The file names no metric, and no trial logged {plan.metric}: the trials are not compared.\n"
        return "No trial finished.\n"
    arguments = shlex.join(setting_arguments(first.parameters))
    command = trial_folder(folder, first.number) / "command.txt"
    return f"Best is trial {first.number}: {arguments}\nIts full command is in {command}\n"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder for this process; the system releases the lock when the process ends."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder} is in use by another sweep; wait for it, or give another folder by --out"
            ) from None
        yield


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM as an interrupt, so that the running trial is ended too."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
