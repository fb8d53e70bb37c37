"""Report: a training as one page with curves, pictures, data, settings and what is needed to repeat it."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from callbacks.outputs import run_folder
from vr1.data.datamodule import RecordDataModule
from vr1.errors import UserError
from vr1.runs.facts import run_facts
from vr1.runs.report import write_report
from vr1.types import DetectionRecord

_MAX_LABELS = 12


def summarise(source: Sequence[DetectionRecord], sample: int = 64) -> dict[str, Any]:
    """Summary of a data set.

    Args:
        source: records by index.
        sample: number of records to open, evenly spread; decoding all images can take longer than a training.

    Returns:
        ``records`` (all of them), and of the sample: ``sampled``, ``unreadable``, ``boxes`` (mean per image),
        ``without_boxes`` (images), ``width`` and ``height`` (smallest and largest, in pixels), ``labels`` (counts of
        the most frequent ones) and ``distinct_labels``.

    Example:
        >>> from vr1.drawing.boxes import example_prediction
        >>> summarise([example_prediction().record])["boxes"]
        3.0
    """
    total = len(source)
    chosen = sorted({index * total // max(1, min(sample, total)) for index in range(min(sample, total))})
    records, unreadable = [], 0
    for index in chosen:
        try:
            records.append(source[index])
        except (ValueError, OSError):
            # A damaged image must not end the run here; training reports it if it reads it.
            unreadable += 1
    labels = Counter(label for record in records for label in record.labels)
    summary: dict[str, Any] = {"records": total, "sampled": len(records), "unreadable": unreadable}
    if not records:
        return summary
    widths, heights = zip(*(record.image_size for record in records), strict=True)
    return summary | {
        "boxes": round(sum(len(record.labels) for record in records) / len(records), 2),
        "without_boxes": sum(not record.labels for record in records),
        "width": [min(widths), max(widths)],
        "height": [min(heights), max(heights)],
        "labels": dict(labels.most_common(_MAX_LABELS)),
        "distinct_labels": len(labels),
    }


class Report(Callback):
    """Write ``report.html`` into the run's folder when training ends, also when it is stopped or fails.

    The page is made of the files in the run's folder, so it shows what the trainer's other callbacks and loggers write:
    curves of :class:`~callbacks.Curves` or of a ``CSVLogger``, pictures of :class:`~callbacks.Gallery`, the table of
    :class:`~callbacks.BeforeAfter`, and the ``config.yaml`` of the command line. It opens from disk without a network
    and is smaller than 5 MB.

    The callback also writes ``run.json`` (command, seed, versions, git state) when training begins and ``data.json`` (a
    summary of the data of a :class:`~vr1.data.datamodule.RecordDataModule`).

    Args:
        data_sample: number of images of each split that are opened for the summary of the data; 0 writes none.

    Note:
        ``python -m vr1 report RUN`` writes the page of any run folder, also without this callback.

    Raises:
        UserError: ``data_sample`` is negative.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import Report
        >>> trainer = Trainer(callbacks=[Report()], logger=False)

    """

    def __init__(self, data_sample: int = 64) -> None:
        if data_sample < 0:
            raise UserError(f"Report: data_sample is {data_sample}: give 0 (no summary of the data) or more images")
        self.data_sample = data_sample
        self._folder = Path()
        self._facts: dict[str, Any] = {}

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        self._folder = run_folder(trainer)
        if stage == "fit" and _writes(trainer):
            self._facts = run_facts()
            _write(self._folder / "run.json", self._facts)

    @override
    def on_fit_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if self.data_sample and isinstance(datamodule, RecordDataModule) and _writes(trainer):
            sources: dict[Any, Any] = dict(datamodule.sources)
            splits = {str(split): summarise(source, self.data_sample) for split, source in sources.items()}
            _write(self._folder / "data.json", {"name": type(datamodule).__name__, "splits": splits})

    @override
    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            # Preemption ends a run by SystemExit.
            reasons = {KeyboardInterrupt: "interrupted", SystemExit: "stopped by a signal"}
            reason = reasons.get(type(exception), type(exception).__name__)
            self._finish(trainer, f"ended early at step {trainer.global_step}: {reason}")

    @override
    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        # Not in on_fit_end, where callbacks listed after this one have not written their part yet.
        if stage == "fit":
            self._finish(trainer, "")

    def _finish(self, trainer: "pl.Trainer", ended: str) -> None:
        if not _writes(trainer) or not self._facts:
            return
        _write(self._folder / "run.json", self._facts | ({"ended": ended} if ended else {}))
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()
        try:
            rank_zero_info(f"report: {write_report(self._folder)}")
        except UserError as error:
            # Nothing was logged or drawn, or a file is damaged: that must not fail a finished training, and says
            # nothing about one that was refused before its first step.
            if trainer.global_step or not ended:
                rank_zero_info(f"no report: {error}")


def _writes(trainer: "pl.Trainer") -> bool:
    return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
