"""One trial of a sweep: a command in a process of its own, and a file that says how far it came."""

import json
import os
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
from vr1.runs.folder import read_run

State = Literal["running", "finished", "crashed"]
_STATE_FILE = "trial.json"
_SAID = 2000


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is known of a trial.

    Attributes:
        number: its place in the sweep, from 0 on.
        parameters: value by name of the setting.
        state: ``running`` too where the sweep was ended in the middle of it.
        value: last value of the sweep's metric; None unless finished.
        seconds: how long it took.
        problem: why it crashed.
    """

    number: int
    parameters: dict[str, Any]
    state: State = "running"
    value: float | None = None
    seconds: float = 0.0
    problem: str = ""


def trial_folder(sweep: Path, number: int) -> Path:
    """Where a trial's run lies."""
    return sweep / f"trial_{number:03d}"


def read_trial(folder: Path) -> Trial | None:
    """What a trial's folder says of it; None where there is nothing, or nothing that can be read."""
    try:
        return Trial(**json.loads((folder / _STATE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def expand(plan: Plan, parameters: dict[str, Any], folder: Path | None = None) -> list[str]:
    """The words of a trial's command, its macros filled in as the agent of Weights & Biases does.

    Args:
        plan: the sweep.
        parameters: value by name of the setting.
        folder: where the run is to be written, without Weights & Biases; None leaves the command's own loggers.

    Example:
        >>> from vr1.commands.sweep.plan import Plan
        >>> plan = Plan(name="", method="grid", metric="m", goal="maximize", program="", text="", limit=None,
        ...     parameters={}, command=("${env}", "python", "-m", "vr1", "fit", "${args}"))
        >>> expand(plan, {"model.optimizer.lr": 0.1})[1:]
        ['-m', 'vr1', 'fit', '--model.optimizer.lr=0.1']
    """
    words: list[str] = []
    for word in plan.command:
        if word == "${args}":
            words += [f"--{name}={value}" for name, value in parameters.items()]
        elif word == "${args_no_equals}":
            words += [part for name, value in parameters.items() for part in (f"--{name}", str(value))]
        elif word != "${env}":
            words.append(word.replace("${interpreter}", sys.executable).replace("${program}", plan.program))
    if words and words[0] in ("python", "python3"):
        # The one that runs the sweep: another on the path may lack every package.
        words[0] = sys.executable
    if folder is not None:
        words += [
            "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
            f"--trainer.logger.save_dir={folder.parent}",
            "--trainer.logger.name=",
            f"--trainer.logger.version={folder.name}",
            f"--trainer.default_root_dir={folder}",
        ]
    return words


def run_trial(plan: Plan, trial: Trial, folder: Path) -> Trial:
    """Run a trial from its beginning and say how it went; its output is in ``output.txt``.

    Raises:
        KeyboardInterrupt: if it was interrupted; its process is gone then, and it is still marked as running.
    """
    # What an interrupted trial left would be taken for this one's.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write(folder, trial)
    words = expand(plan, trial.parameters, folder)
    (folder / "command.txt").write_text(shlex.join(words) + "\n", encoding="utf-8")
    started = time.monotonic()
    code = _run(words, folder / "output.txt")
    seconds = round(time.monotonic() - started, 1)
    done = _judged(plan, replace(trial, seconds=seconds), folder, code)
    _write(folder, done)
    return done


def _run(words: list[str], output: Path) -> int:
    with output.open("wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, preexec_fn=die_with_parent)
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


def _judged(plan: Plan, trial: Trial, folder: Path, code: int) -> Trial:
    if code != 0:
        said = (folder / "output.txt").read_bytes()[-_SAID:].decode("utf-8", "replace").strip().splitlines()
        ended = f"signal {-code}" if code < 0 else f"status {code}"
        return replace(trial, state="crashed", problem=f"{ended}: {said[-1].strip() if said else 'it said nothing'}")
    try:
        series = read_run(folder).series
    except ValueError as error:
        return replace(trial, state="crashed", problem=str(error))
    if plan.metric not in series:
        problem = f"metric {plan.metric} was not logged; logged were {', '.join(sorted(series))}"
        return replace(trial, state="crashed", problem=problem)
    return replace(trial, state="finished", value=series[plan.metric][-1][1])


def _write(folder: Path, trial: Trial) -> None:
    """Write the state in one stroke: half a file would make a finished trial look interrupted."""
    partial = folder / f".{_STATE_FILE}.partial"
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(asdict(trial), indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / _STATE_FILE)
