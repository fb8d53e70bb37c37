"""Kill a short run at random moments, resume it each time, and compare its weights with those of an undisturbed run.

    python benchmarks/kills.py --out runs/kills --kills 50

A start is killed (SIGKILL) some random time after its training has begun, in the middle of a step or of a checkpoint,
and goes on with ``last.ckpt``. A run that reaches its last step is compared, bit by bit, and the next one begins, until
all kills are spent; the last run is left to end. One thread: bits depend on how sums are divided.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from lightning.pytorch.callbacks import Callback

ROOT = Path(__file__).parents[1]
_STARTED = "VR1_KILLS_STARTED"


class Started(Callback):
    """Writes a file that the environment names once training has started."""

    def on_train_start(self, *_: Any) -> None:
        """Write the file."""
        Path(os.environ[_STARTED]).touch()


def kill(
    out: Path = Path("runs/kills"),
    kills: int = 50,
    steps: int = 40,
    longest: float = 4.0,
    seed: int = 0,
    config: str = "configs/demo.yaml",
) -> None:
    """Run, kill and compare.

    Args:
        out: folder for the runs; an earlier one there is removed.
        kills: how often.
        steps: optimizer steps of a run.
        longest: most seconds between the beginning of training and a kill.
        seed: of the moments.
        config: what is trained.
    """
    shutil.rmtree(out, ignore_errors=True)
    moments = random.Random(seed)
    expected = _finish(out / "undisturbed", config, steps)
    spent = runs = 0
    while spent < kills:
        folder, done = out / f"run_{runs}", False
        while spent < kills and not done:
            done = not _killed(folder, config, steps, moments.uniform(0, longest))
            spent += not done
        # A finished run is started once more: it has nothing left to do and must not change anything.
        final = _finish(folder, config, steps)
        different = [name for name, value in expected.items() if not _same(value, final[name])]
        runs += 1
        print(f"run {runs}: {spent} kills so far, {len(different)} of {len(expected)} tensors differ", flush=True)
        if different:
            raise SystemExit(f"{folder}: {different[0]} differs from the undisturbed run")
    print(f"{spent} kills, {spent} resumes, {runs} runs: weights and optimizer states identical to the undisturbed run")


def _command(folder: Path, config: str, steps: int) -> list[str]:
    arguments = ["--config", config, "--trainer.default_root_dir", str(folder), "--trainer.logger", "false"]
    arguments += ["--trainer.max_steps", str(steps), "--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "0"]
    arguments += ["--trainer.num_sanity_val_steps", "0", "--trainer.enable_progress_bar", "false"]
    arguments += ["--model.sampling", '{"group_size": 2, "max_new_tokens": 16}', "--model.updates_per_rollout", "2"]
    arguments += ["--data.train_scenes", "24", "--data.val_scenes", "1", "--data.batch_size", "2"]
    checkpoints = "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {every_n_train_steps: 1,"
    checkpoints += " save_last: true, enable_version_counter: false}}"
    arguments += ["--trainer.callbacks", f"[{{class_path: callbacks.RuleRefinement}}, {checkpoints}]"]
    arguments += ["--trainer.callbacks+", "benchmarks.kills.Started"]
    last = folder / "checkpoints" / "last.ckpt"
    return [sys.executable, "-m", "vr1", "fit", *arguments, *(["--ckpt_path", str(last)] if last.exists() else [])]


def _start(folder: Path, config: str, steps: int) -> tuple[subprocess.Popen[bytes], Path]:
    folder.mkdir(parents=True, exist_ok=True)
    started = folder / "started"
    started.unlink(missing_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", _STARTED: str(started.absolute())}
    with (folder / "log.txt").open("ab") as log:
        command = _command(folder.absolute(), config, steps)
        # A process group of its own, so that its data workers are killed too, as on a machine that is preempted.
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, process_group=0), started


def _killed(folder: Path, config: str, steps: int, after: float) -> bool:
    """Start or resume the run and kill it ``after`` seconds of training; False if it ended before."""
    process, started = _start(folder, config, steps)
    while not started.exists() and process.poll() is None:
        time.sleep(0.01)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    if process.returncode:
        raise SystemExit(f"a run failed by itself: see {folder / 'log.txt'}")
    return False


def _finish(folder: Path, config: str, steps: int) -> dict[str, Any]:
    """Run to the end; return weights and optimizer states."""
    process, _ = _start(folder, config, steps)
    if process.wait():
        raise SystemExit(f"a run failed by itself: see {folder / 'log.txt'}")
    from vr1.checkpoints.files import read_checkpoint

    stored = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    states = stored["optimizer_states"][0]["state"]
    moments = {f"optimizer {key} {name}": value for key, state in states.items() for name, value in state.items()}
    return {"step": stored["global_step"], **stored["state_dict"], **moments}


def _same(one: Any, two: Any) -> bool:
    return bool((one == two).all()) if hasattr(one, "all") else bool(one == two)


if __name__ == "__main__":
    auto_cli(kill, as_positional=False)
