"""Progress.

Follow a training at the terminal, or in a log file, by the numbers that tell whether it goes well.
"""

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from typing_extensions import override

from callbacks.rule_refinement import stage_name
from callbacks.schedule import total_steps
from vr1.errors import UserError

SHOWN = {
    "reward/total": "reward",
    "reward/dual_format": "format",
    "reward/recall": "recall",
    "reward/precision": "precision",
    "sft/loss": "loss",
    "grpo/kl": "kl",
    "perf/tokens_per_second": "tok/s",
    "val/map": "mAP",
}


class Progress(TQDMProgressBar):
    """Show the reward by term, the stage, the KL, tokens per second and the time left.

    On a terminal this is a bar. Where the output goes to a file it would be one endless line; there it is a plain line
    at most every ``line_interval`` seconds.

    Args:
        refresh_rate: batches between two updates of the bar; 0 switches the display off.
        line_interval: seconds between two lines in a file.
        leave: keep the bar of each finished epoch.

    Note:
        The time left is that of the whole training: steps left times the mean duration of the steps of this run,
        validation included. It is not shown where nothing bounds the training.

    Raises:
        UserError: if ``refresh_rate`` or ``line_interval`` is negative.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import Progress
        >>> trainer = Trainer(callbacks=[Progress(line_interval=60)], logger=False)

    """

    def __init__(self, refresh_rate: int = 1, line_interval: float = 30.0, leave: bool = False) -> None:
        if refresh_rate < 0:
            raise UserError(f"Progress: refresh_rate is {refresh_rate}: give 0 (off) or more batches")
        if line_interval < 0:
            raise UserError(f"Progress: line_interval is {line_interval}: give 0 or more seconds")
        super().__init__(refresh_rate=refresh_rate, leave=leave)
        self.line_interval = line_interval
        self._lines = False
        self._began = (0.0, 0)
        self._last_line = 0.0
        self._stage = ""

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._lines = self.is_enabled and not sys.stdout.isatty()
        if self._lines:
            self.disable()

    @override
    def init_train_tqdm(self) -> Tqdm:
        bar = super().init_train_tqdm()
        # The bar counts the batches of one epoch, so its own estimate would differ from the time left of training.
        bar.bar_format = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
        return bar

    @override
    def get_metrics(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> dict[str, Any]:
        logged = trainer.callback_metrics
        items: dict[str, Any] = {}
        if stage := self._stage or stage_name(trainer):
            items["stage"] = stage
        items |= {short: _readable(float(logged[name])) for name, short in SHOWN.items() if name in logged}
        left = self._seconds_left(trainer)
        if left is not None:
            items["left"] = _duration(left)
        return items

    @override
    def on_train_start(self, *args: Any) -> None:
        super().on_train_start(*args)
        self._began = (time.monotonic(), self.trainer.global_step)
        self._last_line = float("-inf")

    @override
    def on_train_batch_start(self, trainer: "pl.Trainer", *args: Any) -> None:
        super().on_train_batch_start(trainer, *args)
        # At the end of a step the next one's stage has begun already.
        self._stage = stage_name(trainer)

    @override
    def on_validation_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        super().on_validation_start(trainer, pl_module)
        self._stage = stage_name(trainer)

    @override
    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._lines and time.monotonic() - self._last_line >= self.line_interval:
            self._write_line(trainer, pl_module, f"step {trainer.global_step}{_of(total_steps(trainer))}")

    @override
    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        super().on_validation_end(trainer, pl_module)
        if self._lines:
            begun = "before training" if trainer.sanity_checking else f"validated at step {trainer.global_step}"
            self._write_line(trainer, pl_module, begun)

    @override
    def on_train_end(self, *args: Any) -> None:
        super().on_train_end(*args)
        if self._lines:
            self._write_line(self.trainer, self.trainer.lightning_module, f"done at step {self.trainer.global_step}")

    @override
    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        if self._lines:
            print(*args, sep=sep, **kwargs)
        else:
            super().print(*args, sep=sep, **kwargs)

    def _write_line(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", begun: str) -> None:
        self._last_line = time.monotonic()
        items = self.get_metrics(trainer, pl_module)
        print(begun, *(f"{name} {value}" for name, value in items.items()), sep=" | ", flush=True)

    def _seconds_left(self, trainer: "pl.Trainer") -> float | None:
        began, first = self._began
        total, done = total_steps(trainer) if trainer.training or trainer.validating else None, trainer.global_step
        if total is None or done <= first:
            return None
        return max(0, total - done) * (time.monotonic() - began) / (done - first)


def _of(total: int | None) -> str:
    return "" if total is None else f" of {total}"


def _readable(value: float) -> str:
    """Three digits, whatever the size; the bar has no room for more."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
