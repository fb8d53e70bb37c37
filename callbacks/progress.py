"""Training at the terminal or in a log file: what begins, how it goes, and what to do with the result."""

import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from typing_extensions import override

from callbacks.console import duration, end_lines, start_lines
from callbacks.outputs import run_folder
from callbacks.rule_refinement import stage_name
from callbacks.schedule import total_steps
from vr1.errors import UserError
from vr1.runs.tables import figure_text

# Short names of metrics, most important first; reward terms that are not listed follow the total reward.
_FIRST = {"val/map": "mAP", "reward/total": "reward", "sft/loss": "loss"}
_LAST = {
    "reward/dual_format": "format",
    "reward/recall": "recall",
    "reward/precision": "precision",
    "grpo/kl": "kl",
    "perf/tokens_per_second": "tok/s",
}
_NAME_WIDTH = 16


class Progress(TQDMProgressBar):
    """Show what is trained, how training goes, and the next commands when it ends.

    The progress is one line that fits the terminal, most important numbers first: step, time left, mAP of the last
    validation, reward, the user's own reward terms, the other terms, stage, KL, tokens per second. What does not fit is
    left out. On a terminal the line is updated in place. In a file it is written at most every ``line_interval``
    seconds, and after each validation.

    Args:
        refresh_rate: batches between two updates on a terminal; 0 switches the display off.
        line_interval: seconds between two lines in a file.
        leave: on a terminal, begin a new line at each epoch.

    Note:
        The time left is that of the whole training: steps left times the mean duration of the steps of this run,
        validation included. It is left out where nothing limits the training. The width is that of the terminal, or the
        environment variable ``COLUMNS``; in a file 120 characters.

    Raises:
        UserError: ``refresh_rate`` or ``line_interval`` is negative.

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
        self._shows = refresh_rate > 0
        self._to_file = False
        self._folder = Path()
        self._started = 0.0
        self._first_step = (0.0, 0)
        self._last_line = 0.0
        self._stage = ""
        self._map_before: Any = None

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        if self._to_file:
            # Disabled below, by the run before this one.
            self.enable()
        super().setup(trainer, pl_module, stage)
        self._folder = run_folder(trainer)
        # Lightning switches the display off on all ranks but the first.
        self._shows = self.is_enabled
        self._to_file = self._shows and not sys.stdout.isatty()
        if self._to_file:
            self.disable()

    @override
    def on_fit_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._started, self._map_before = time.monotonic(), None
        if self._shows:
            print(*start_lines(trainer, pl_module, self._folder), sep="\n", flush=True)

    @override
    def init_train_tqdm(self) -> Tqdm:
        return _MetricsLine(
            desc=self.train_description,
            position=2 * self.process_position,
            disable=self.is_disabled,
            leave=True,
            file=sys.stdout,
            smoothing=0,
            bar_format="{desc}",
        )

    @override
    def get_metrics(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> dict[str, Any]:
        """The items of the line by name, most important first."""
        logged = trainer.callback_metrics
        if "reward/total" in logged:
            # Of a warm start, which is over.
            logged = {name: value for name, value in logged.items() if name != "sft/loss"}
        if "val/map" not in logged and self._map_before is not None:
            logged = {**logged, "val/map": self._map_before}
        known = {**_FIRST, **_LAST}
        own = {
            name: name.removeprefix("reward/") for name in logged if name.startswith("reward/") and name not in known
        }
        total = total_steps(trainer)
        items: dict[str, Any] = {"step": f"{trainer.global_step}" + ("" if total is None else f"/{total}")}
        left = self._seconds_left(trainer)
        if left is not None:
            items["left"] = duration(left)
        items |= _values(_FIRST | own, logged)
        last = _values(_LAST, logged)
        items |= {name: value for name, value in last.items() if name not in ("kl", "tok/s")}
        if stage := self._stage or stage_name(trainer):
            items["stage"] = stage
        return items | last

    @override
    def on_train_start(self, *args: Any) -> None:
        super().on_train_start(*args)
        self._first_step = (time.monotonic(), self.trainer.global_step)
        self._last_line = float("-inf")

    @override
    def on_train_batch_start(self, trainer: "pl.Trainer", *args: Any) -> None:
        super().on_train_batch_start(trainer, *args)
        # At the end of a step the stage of the next step has begun already.
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
        if self._to_file and time.monotonic() - self._last_line >= self.line_interval:
            self._write_line(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.sanity_checking and trainer.num_sanity_val_batches == trainer.num_val_batches:
            self._map_before = trainer.callback_metrics.get("val/map")
        if self._to_file:
            begin = "before training" if trainer.sanity_checking else f"validated at step {trainer.global_step}"
            self._write_line(trainer, pl_module, begin)

    @override
    def on_train_end(self, *args: Any) -> None:
        super().on_train_end(*args)
        if self._to_file:
            self._write_line(self.trainer, self.trainer.lightning_module, f"done at step {self.trainer.global_step}")

    @override
    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        # Not in on_fit_end, where callbacks listed after this one have not written their files yet.
        if stage == "fit" and self._shows:
            seconds = time.monotonic() - self._started
            print(*end_lines(trainer, pl_module, self._folder, seconds), sep="\n", flush=True)

    @override
    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        if self._to_file:
            print(*args, sep=sep, **kwargs)
        else:
            super().print(*args, sep=sep, **kwargs)

    def _write_line(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", begin: str = "") -> None:
        self._last_line = time.monotonic()
        items = self.get_metrics(trainer, pl_module)
        if begin:
            del items["step"]
        print(line_of(begin, items, _width(120)), flush=True)

    def _seconds_left(self, trainer: "pl.Trainer") -> float | None:
        started, first = self._first_step
        total, step = total_steps(trainer) if trainer.training or trainer.validating else None, trainer.global_step
        if total is None or step <= first:
            return None
        return max(0, total - step) * (time.monotonic() - started) / (step - first)


class _MetricsLine(Tqdm):
    """A bar of tqdm that shows a line of metrics in place of the bar."""

    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """Ignore the number of the epoch, which Lightning sets."""

    def set_postfix(self, ordered_dict: Any = None, refresh: bool | None = True, **kwargs: Any) -> None:
        """Show the items of ``get_metrics``."""
        # One column less: a full line makes some terminals begin a new one.
        self.set_description_str(line_of("", ordered_dict or {}, _width(80) - 1), refresh)


def line_of(begin: str, items: Mapping[str, Any], width: int) -> str:
    """One line of items, as many of the first ones as fit.

    Args:
        begin: text in front of the items.
        items: text by name, most important first.
        width: in characters.

    Example:
        >>> line_of("step 1/9", {"left": "0:08", "mAP": "0.21", "reward": "1.9"}, 30)
        'step 1/9  left 0:08  mAP 0.21'
    """
    line = begin
    for name, value in items.items():
        short = name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 1] + "…"
        longer = f"{line}  {short} {value}" if line else f"{short} {value}"
        if len(longer) > width:
            break
        line = longer
    return line[:width]


def _values(names: Mapping[str, str], logged: Mapping[str, Any]) -> dict[str, str]:
    values = {name: float(logged[name]) for name in names if name in logged}
    # Figures of validations as in every table; those of single steps as short as they can be.
    return {names[name]: (figure_text if name.startswith("val/") else _readable)(values[name]) for name in values}


def _width(otherwise: int) -> int:
    """Columns of the terminal, or of the environment variable COLUMNS."""
    return shutil.get_terminal_size((otherwise, 24)).columns


def _readable(value: float) -> str:
    """A number with three digits, whatever its size."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
