"""One trial of a sweep: a command in its own process, and a file with its state."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vr1.commands.sweep.plan import Plan
from vr1.distributed import die_with_parent
from vr1.errors import UserError

State = Literal["running", "finished", "crashed"]
_STATE_FILE = "trial.json"
_OUTPUT_BYTES = 20_000
# What a command says of a mistake, and the last line of a traceback.
_ERRORS = (re.compile(r"^[\w. ]+: error: "), re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b"))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The settings, state and result of a trial.

    Attributes:
        number: index in the sweep, from 0.
        parameters: value by name of the setting.
        state: ``running`` also if the sweep was ended during the trial.
        value: last value of the sweep's metric; None unless finished.
        seconds: wall time.
        problem: why it crashed.
    """

    number: int
    parameters: dict[str, Any]
    state: State = "running"
    value: float | None = None
    seconds: float = 0.0
    problem: str = ""


def trial_folder(sweep: Path, number: int) -> Path:
    """The run folder of a trial."""
    return sweep / f"trial_{number:03d}"


def read_trial(folder: Path) -> Trial | None:
    """The trial of a folder; None if its state file is missing or cannot be read."""
    try:
        return Trial(**json.loads((folder / _STATE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def expand(plan: Plan, parameters: dict[str, Any], folder: Path | None = None) -> list[str]:
    """The arguments of a trial's command, with macros replaced as the agent of Weights & Biases does.

    Args:
        plan: the sweep.
        parameters: value by name of the setting.
        folder: run folder to write, with a CSV logger; None keeps the loggers of the command.

    Example:
        >>> from vr1.commands.sweep.plan import Plan
        >>> plan = Plan(name="", method="grid", metric="m", goal="maximize", program="", text="", limit=None,
        ...     parameters={}, command=("${env}", "python", "-m", "vr1", "fit", "${args}"))
        >>> expand(plan, {"model.optimizer.lr": 0.1})[1:]
        ['-m', 'vr1', 'fit', '--model.optimizer.lr=0.1']
    """
    arguments: list[str] = []
    for argument in plan.command:
        if argument == "${args}":
            arguments += setting_arguments(parameters)
        elif argument == "${args_no_equals}":
            arguments += [part for setting in setting_arguments(parameters) for part in setting.split("=", 1)]
        elif argument != "${env}":
            arguments.append(argument.replace("${interpreter}", sys.executable).replace("${program}", plan.program))
    if arguments and arguments[0] in ("python", "python3"):
        # The Python that runs the sweep: another one on the path may not have the packages.
        arguments[0] = sys.executable
    if folder is not None:
        arguments += [
            "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
            f"--trainer.logger.save_dir={folder.parent}",
            "--trainer.logger.name=",
            f"--trainer.logger.version={folder.name}",
            f"--trainer.default_root_dir={folder}",
        ]
    return arguments


def setting_arguments(parameters: dict[str, Any]) -> list[str]:
    """Settings as arguments of a command; values that are no text are written as YAML reads them.

    Example:
        >>> setting_arguments({"a.lr": 1e-05, "a.size": None, "a.on": True, "a.sides": [1, 2], "a.name": "x y"})
        ['--a.lr=1e-05', '--a.size=null', '--a.on=true', '--a.sides=[1, 2]', '--a.name=x y']
    """
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in parameters.items()]


def run_trial(plan: Plan, trial: Trial, folder: Path) -> Trial:
    """Run a trial from the start and return its result; its output is in ``output.txt``.

    Raises:
        KeyboardInterrupt: the trial was interrupted. Its process is ended, and its state is still ``running``.
    """
    # Files of an interrupted trial would be read as results of this one.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write(folder, trial)
    arguments = expand(plan, trial.parameters, folder)
    (folder / "command.txt").write_text(shlex.join(arguments) + "\n", encoding="utf-8")
    started = time.monotonic()
    code = _run(arguments, folder / "output.txt")
    seconds = round(time.monotonic() - started, 1)
    done = _result(plan, replace(trial, seconds=seconds), folder, code)
    _write(folder, done)
    return done


def _run(arguments: list[str], output: Path) -> int:
    with output.open("wb") as file:
        process = subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT, preexec_fn=die_with_parent)
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _result(plan: Plan, trial: Trial, folder: Path, code: int) -> Trial:
    if code != 0:
        output = (folder / "output.txt").read_bytes()[-_OUTPUT_BYTES:].decode("utf-8", "replace")
        ended = f"signal {-code}" if code < 0 else f"status {code}"
        return replace(trial, state="crashed", problem=f"{ended}: {_error_in(output)}")
    # Imported here, so that --help does not wait for matplotlib.
    from vr1.runs.folder import read_run

    try:
        series = read_run(folder).series
    except UserError as error:
        return replace(trial, state="crashed", problem=str(error))
    if plan.metric not in series and not plan.names_metric:
        return replace(trial, state="finished")
    if plan.metric not in series:
        problem = f"metric {plan.metric} was not logged; logged were {', '.join(sorted(series))}"
        return replace(trial, state="crashed", problem=problem)
    return replace(trial, state="finished", value=series[plan.metric][-1][1])


def _error_in(output: str) -> str:
    """The line of a command's output that says what was wrong: its error, not the hint or the warning after it."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for pattern in _ERRORS:
        if found := [line for line in lines if pattern.search(line)]:
            return found[-1]
    return lines[-1] if lines else "no output"


def _write(folder: Path, trial: Trial) -> None:
    """Write the state atomically: half a file would make a finished trial look interrupted."""
    partial = folder / f".{_STATE_FILE}.partial"
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(asdict(trial), indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / _STATE_FILE)
