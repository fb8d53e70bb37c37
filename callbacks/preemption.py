"""Preemption.

Leave in good order when the machine is taken away: save, and say how to go on.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import SLURMEnvironment
from typing_extensions import override

from callbacks.outputs import run_folder
from vr1.errors import UserError
from vr1.modules.state import HasTrainingState


class Preemption(Callback):
    """On SIGTERM (or another signal), save a checkpoint after the step that is running, and exit.

    It prints the command that goes on from there, exactly. The exit status is 128 and the number of the signal, 143 for
    SIGTERM. A process that alone gets the signal takes the others with it.

    Under SLURM with Lightning's automatic requeueing (``#SBATCH --signal=SIGUSR1@90``), the checkpoint is put where
    Lightning looks for it, and the job is queued again: it then goes on by itself.

    Args:
        filename: the checkpoint's name in the ``checkpoints`` folder of the run; an earlier one is replaced.
        signals: names of the signals to obey.

    Note:
        The signal waits for the end of the optimizer step, and for that of a validation that is running: what is saved
        is a state from which training goes on as if it had never stopped.

    Raises:
        UserError: a signal that does not exist, or cannot be caught.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import Preemption
        >>> trainer = Trainer(callbacks=[Preemption()], logger=False)

    """

    def __init__(self, filename: str = "preempted.ckpt", signals: tuple[str, ...] = ("SIGTERM", "SIGUSR1")) -> None:
        for name in signals:
            if not hasattr(signal, name) or name in ("SIGKILL", "SIGSTOP"):
                raise UserError(
                    f"Preemption: signals has {name!r}, which cannot be caught: give names such as 'SIGTERM'"
                )
        self.filename = filename
        self.signals = [getattr(signal, name) for name in signals]
        self._before: dict[int, Any] = {}
        self._folder = Path()
        self._received = 0
        self._step = 0

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        self._folder = run_folder(trainer) / "checkpoints"
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        # Behind the others, so that what they make of a step is in its checkpoint. A new list: Lightning is going
        # through the old one.
        trainer.callbacks = [*(item for item in callbacks if item is not self), self]  # type: ignore[attr-defined]

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        # Lightning's own handlers save within whatever is running just then, or exchange tensors within the handler.
        # They are in place by now, and one of them may have been called while the model was loaded.
        self._received = signal.SIGTERM if trainer.received_sigterm else 0
        self._step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._notice) for number in self.signals}

    @override
    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            # Between two batches of an accumulated step: its gradients are not part of a checkpoint.
            return
        self._step = trainer.global_step
        if not trainer.strategy.reduce_boolean_decision(bool(self._received), all=False):
            return
        number = self._received or signal.SIGTERM
        requeue = _requeues(trainer, number)
        path = Path(_requeue_path(trainer)) if requeue else self._folder / self.filename
        trainer.save_checkpoint(path)
        self._put_back()
        if trainer.is_global_zero:
            name = signal.Signals(number).name
            print(f"vr1: {name} at step {self._step}: saved {path}; go on with", file=sys.stderr)
            print(_how_to_go_on(pl_module, path), file=sys.stderr, flush=True)
            if requeue:
                _requeue()
        raise SystemExit(128 + number)

    @override
    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._put_back()

    @override
    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        self._put_back()

    def _notice(self, number: int, frame: Any) -> None:
        if not self._received:
            # os.write: print may be what the signal has just interrupted.
            with contextlib.suppress(OSError):
                os.write(2, b"vr1: asked to stop; saving after the present step\n")
        self._received = number

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}


def _how_to_go_on(pl_module: Any, path: Path) -> str:
    """The run's own command with the checkpoint added; for a run of Python's, what to pass to the trainer."""
    command = pl_module.training_state.run.command if isinstance(pl_module, HasTrainingState) else ""
    if not command:
        return f"trainer.fit(..., ckpt_path={str(path)!r})"
    words, kept = iter(shlex.split(command)), []
    for word in words:
        if word == "--ckpt_path":
            next(words, None)
        elif not word.startswith("--ckpt_path="):
            kept.append(word)
    return shlex.join([*kept, "--ckpt_path", str(path)])


def _requeues(trainer: Any, number: int) -> bool:
    environment = trainer._accelerator_connector.cluster_environment
    if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
        return False
    return number == (environment.requeue_signal or signal.SIGUSR1)


def _requeue_path(trainer: Any) -> str:
    path: str = trainer._checkpoint_connector.hpc_save_path(trainer.default_root_dir)
    return path


def _requeue() -> None:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(["scontrol", "requeue", job], check=False)
