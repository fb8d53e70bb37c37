"""A sweep of real trainings, killed in the middle again and again: no trial is lost, none is repeated.

    python benchmarks/sweep_killed.py --out runs/sweep_killed --kills 2

Starts ``python -m vr1 sweep`` on short trials of the embedded model, sends SIGKILL while a trial trains, and gives the
same command again, until it ends by itself. Then every trial must be there once, with the parameters drawn for it, and
what had finished before a kill must not have been touched since. Prints the count; exit status 1 if one is wrong.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml
from jsonargparse import auto_cli

from vr1.commands.sweep import parameters_of, read_plan

ROOT = Path(__file__).resolve().parents[1]
SHORT = [
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=1",
    "--data.batch_size=4",
    "--data.train_scenes=16",
    "--data.val_scenes=8",
    "--data.num_workers=0",
]


def sweep_killed(
    out: Path = Path("runs/sweep_killed"), trials: int = 6, kills: int = 2, sweep: str = "training"
) -> int:
    """Run the sweep, killing it.

    Args:
        out: folder of the sweep; a new one.
        trials: trials of the sweep.
        kills: how often it is killed, evenly spread over the trials.
        sweep: name of a file in configs/sweeps.

    Returns:
        Exit status: 0 if no trial was lost or repeated.
    """
    if out.exists():
        raise SystemExit(f"{out} exists already; remove it, or give another --out")
    out.mkdir(parents=True)
    settings = yaml.safe_load((ROOT / "configs" / "sweeps" / f"{sweep}.yaml").read_text())
    settings["command"] = [*settings["command"][:-1], *SHORT, settings["command"][-1]]
    path = out.resolve() / "short.yaml"
    path.write_text(yaml.safe_dump(settings))
    folder = path.parent / "trials"
    command = [sys.executable, "-m", "vr1", "sweep", str(path), "--count", str(trials), "--out", str(folder)]
    finished: dict[str, int] = {}
    for number in range(kills):
        # For example in trials 1 and 4 of 6: while a trial runs, not between two.
        _kill_in(command, folder / f"trial_{(2 * number + 1) * trials // (2 * kills):03d}")
        finished |= _finished(folder)
        print(f"killed {number + 1} times; {len(finished)} trials had finished", flush=True)
    subprocess.run(command, cwd=ROOT, check=True)
    return _judge(path, folder, trials, finished)


def _kill_in(command: list[str], trial: Path) -> None:
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ)
    while not _running(trial):
        if process.poll() is not None:
            raise SystemExit(f"the sweep ended by itself with status {process.returncode} before {trial.name}")
        time.sleep(0.1)
    time.sleep(2)
    process.send_signal(signal.SIGKILL)
    process.wait()


def _running(trial: Path) -> bool:
    state = trial / "trial.json"
    return state.is_file() and json.loads(state.read_text())["state"] == "running"


def _finished(folder: Path) -> dict[str, int]:
    """The time at which each finished trial was written, by name."""
    states = {path.parent.name: path for path in sorted(folder.glob("*/trial.json"))}
    done = {name: path for name, path in states.items() if json.loads(path.read_text())["state"] == "finished"}
    return {name: path.stat().st_mtime_ns for name, path in done.items()}


def _judge(path: Path, folder: Path, trials: int, before: dict[str, int]) -> int:
    expected = parameters_of(read_plan(path), trials)
    states = [json.loads(found.read_text()) for found in sorted(folder.glob("*/trial.json"))]
    lost = trials - sum(state["state"] == "finished" for state in states)
    repeated = [name for name, written in _finished(folder).items() if before.get(name, written) != written]
    wrong = [state["number"] for state in states if state["parameters"] != expected[state["number"]]]
    pictures = (folder / "results.md").is_file() and (folder / "results.png").is_file()
    print(
        f"{trials} trials: {lost} lost, {len(repeated)} repeated, {len(wrong)} with other parameters;"
        f" table and picture {'there' if pictures else 'missing'}"
    )
    return 1 if lost or repeated or wrong or not pictures else 0


if __name__ == "__main__":
    sys.exit(auto_cli(sweep_killed, as_positional=False))
