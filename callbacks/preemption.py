"""Stopping a training by a signal: save a checkpoint, and print the command that resumes.

Private parts of Lightning that this file relies on for SLURM, tried with 2.6.6: ``trainer._accelerator_connector``,
which knows the cluster's environment, and ``trainer._checkpoint_connector``, which names the file that a requeued job
reads.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
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
    """On Ctrl-C, SIGTERM or SIGUSR1, save a checkpoint after the current step and exit.

    The command that resumes from it is printed. The exit status is 128 plus the number of the signal: 130 for Ctrl-C,
    143 for SIGTERM. If one process of several gets the signal, all of them stop. A second Ctrl-C stops at once, without
    a checkpoint. ``python -m vr1 fit`` adds this callback where a configuration does not have it.

    Under SLURM with Lightning's automatic requeueing (``#SBATCH --signal=SIGUSR1@90``), the checkpoint is put where
    Lightning looks for it, and the job is queued again: it then resumes by itself.

    Args:
        filename: the checkpoint's name in the ``checkpoints`` folder of the run; an earlier one is replaced.
        signals: names of the signals to handle.

    Note:
        The signal waits for the end of the optimizer step, and for that of a validation that is running: training
        resumed from the checkpoint is the same as if it had never stopped.

    Raises:
        UserError: a signal that does not exist, or cannot be caught.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import Preemption
        >>> trainer = Trainer(callbacks=[Preemption()], logger=False)

    """

    def __init__(
        self, filename: str = "last.ckpt", signals: tuple[str, ...] = ("SIGINT", "SIGTERM", "SIGUSR1")
    ) -> None:
        for name in signals:
            if name not in signal.Signals.__members__ or name in ("SIGKILL", "SIGSTOP"):
                raise UserError(
                    f"Preemption: signals has {name!r}, which cannot be caught: give names such as 'SIGTERM'"
                )
        self.filename = filename
        self.signals = [signal.Signals[name] for name in signals]
        self._handlers: dict[int, Any] = {}
        self._folder = Path()
        self._received = 0
        self._received_at = 0.0
        self._step = 0

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        self._folder = run_folder(trainer) / "checkpoints"
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        # Last, so that the checkpoint of a step has what the others make of it. A new list: Lightning iterates over the
        # old one.
        trainer.callbacks = [*(item for item in callbacks if item is not self), self]  # type: ignore[attr-defined]

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        # Lightning's own handlers save in the middle of a step, or communicate within the handler. They are installed
        # by now, and one of them may have been called while the model was loaded.
        self._received = signal.SIGTERM if trainer.received_sigterm else 0
        self._step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._handle) for number in self.signals}

    @override
    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            # Not between two batches of an accumulated step, where a checkpoint holds its gradients too and is larger.
            return
        self._step = trainer.global_step
        if not trainer.strategy.reduce_boolean_decision(bool(self._received), all=False):
            return
        number = self._received or signal.SIGTERM
        requeue = _requeues(trainer, number)
        path = Path(_requeue_path(trainer)) if requeue else self._folder / self.filename
        trainer.save_checkpoint(path)
        self._restore_handlers()
        if trainer.is_global_zero:
            name = signal.Signals(number).name
            command = pl_module.training_state.run.command if isinstance(pl_module, HasTrainingState) else ""
            print(f"vr1: {name} at step {self._step}: saved {path}; resume with", file=sys.stderr)
            print(resume_command(command, str(path)), file=sys.stderr, flush=True)
            if requeue:
                _requeue()
        raise SystemExit(128 + number)

    @override
    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._restore_handlers()

    @override
    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        self._restore_handlers()

    def _handle(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        # A terminal and a launcher may each pass on the same Ctrl-C.
        if number == signal.SIGINT == self._received and now - self._received_at > 1:
            self._restore_handlers()
            raise KeyboardInterrupt
        if not self._received:
            again = b"; Ctrl-C again stops without a checkpoint" if number == signal.SIGINT else b""
            # os.write: the signal may have interrupted print.
            with contextlib.suppress(OSError):
                os.write(2, b"\nvr1: stopping; saves a checkpoint after this step" + again + b"\n")
            self._received, self._received_at = number, now

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._handlers = {}


def resume_command(command: str, checkpoint: str) -> str:
    """The shell command that resumes a run from a checkpoint.

    Args:
        command: the command that started the run; empty for a run started from Python.
        checkpoint: path of the checkpoint.

    Example:
        >>> resume_command("python -m vr1 fit --ckpt_path old.ckpt -c a.yaml", "new.ckpt")
        'python -m vr1 fit -c a.yaml --ckpt_path new.ckpt'
        >>> resume_command("", "new.ckpt")
        "trainer.fit(..., ckpt_path='new.ckpt')"
    """
    if not command:
        return f"trainer.fit(..., ckpt_path={checkpoint!r})"
    arguments, without_checkpoint = iter(shlex.split(command)), []
    for argument in arguments:
        if argument == "--ckpt_path":
            next(arguments, None)
        elif not argument.startswith("--ckpt_path="):
            without_checkpoint.append(argument)
    return shlex.join([*without_checkpoint, "--ckpt_path", checkpoint])


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
