"""Evaluation.

Keep what ``test`` finds in the forms that others read: every answer, COCO's results and ground truth, all figures, and
tables by set and by class.
"""

import json
from pathlib import Path
from typing import Any, TextIO

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from callbacks.run_outputs import run_folder
from vr1.metrics.answer_rows import answer_row, read_row
from vr1.metrics.evaluation_files import table_text, write_evaluation
from vr1.prompts import PromptBatch
from vr1.records import Finding


class Evaluation(Callback):
    """Write the files of an evaluation for ``test`` and ``validate``, and print the table of its sets.

    The files are ``answers.jsonl``, ``results.json``, ``ground_truth.json``, ``metrics.json``, ``per_set.csv`` and
    ``per_class.csv``. ``answers.jsonl`` is written as answers come, so an interrupted run keeps what it had;
    ``python -m vr1 score --completions answers.jsonl --coco FOLDER`` makes the other files from it, without a model.
    Where the data have several sets (ODINW, mixtures, RefCOCO's splits), each is measured on its own, and ``average``
    is their mean.

    Args:
        output_dir: folder of all files, made if it is missing; files of the same names in it are replaced. None takes
            ``evaluation`` in the run's folder.
        annotations: a COCO json whose category ids ``results.json`` takes; needed to hand results to somebody who has
            that file. None numbers categories from 1.

    Note:
        With several processes ``output_dir`` must be a folder that all of them see.

        Wants ``test_step`` and ``validation_step`` to return lists of :class:`~vr1.records.Finding`.

    Raises:
        ValueError: if the folder cannot be written to, or ``annotations`` cannot be read.
        TypeError: if a step returns something else.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import Evaluation
        >>> trainer = Trainer(callbacks=[Evaluation("my evaluation")], logger=False)

    """

    def __init__(self, output_dir: str | Path | None = None, annotations: str | Path | None = None) -> None:
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.category_ids = None if annotations is None else _category_ids(Path(annotations))
        self._folder = Path()
        self._file: TextIO | None = None

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        if stage not in ("test", "validate"):
            return
        # Asked on every process, also where the answer is not needed: the processes talk to each other over it.
        default = run_folder(trainer) / "evaluation"
        self._folder = (self.output_dir or default).expanduser()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = _part(self._folder, trainer.global_rank).open("w", encoding="utf-8")
        except OSError as error:
            raise ValueError(
                f"Evaluation: output_dir is {str(self._folder)!r}, which cannot be written to ({error.strerror}): give"
                " a folder of your own"
            ) from error

    @override
    def on_test_batch_end(
        self,
        trainer: "pl.Trainer",
        pl_module: "pl.LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._keep(outputs, batch)

    @override
    def on_validation_batch_end(
        self,
        trainer: "pl.Trainer",
        pl_module: "pl.LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._keep(outputs, batch)

    @override
    def on_test_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._finish(trainer)

    @override
    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._finish(trainer)

    @override
    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        self._close()

    @override
    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        self._close()

    def _keep(self, outputs: Any, batch: Any) -> None:
        if not isinstance(outputs, list) or not all(isinstance(output, Finding) for output in outputs):
            raise TypeError(
                f"Evaluation measures vr1.records.Finding, but the step returned {type(outputs).__name__}: let it"
                " return a list of findings, or leave the callback out"
            )
        assert self._file is not None
        for number, finding in enumerate(outputs):
            record = finding.record
            size = batch.input_sizes[number] if isinstance(batch, PromptBatch) else record.image_size
            row = answer_row(record, finding.detections, finding.completion, finding.instruction, size)
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def _finish(self, trainer: "pl.Trainer") -> None:
        self._close()
        trainer.strategy.barrier("Evaluation")
        if not trainer.is_global_zero:
            return
        with _part(self._folder, 0).open("a", encoding="utf-8") as merged:
            for rank in range(1, trainer.world_size):
                part = _part(self._folder, rank)
                merged.write(part.read_text(encoding="utf-8"))
                part.unlink()
        with _part(self._folder, 0).open(encoding="utf-8") as file:
            rows = [read_row(json.loads(line), number) for number, line in enumerate(file, start=1)]
        if not rows:
            return
        found = write_evaluation(self._folder, rows, self.category_ids)
        rank_zero_info(table_text(found))
        if len(found.sets) > 1:
            figures = {f"{name}/{key}": found.sets[name][key] for name in found.sets for key in ("map", "map_50")}
            figures |= {f"average/{key}": value for key, value in found.average.items()}
            for logger in trainer.loggers:
                logger.log_metrics({f"sets/{name}": value for name, value in figures.items()}, trainer.global_step)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _part(folder: Path, rank: int) -> Path:
    return folder / ("answers.jsonl" if rank == 0 else f"answers.rank{rank}.jsonl")


def _category_ids(path: Path) -> dict[str, int]:
    """COCO's category ids by name."""
    try:
        return {item["name"]: item["id"] for item in json.loads(path.read_bytes())["categories"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"Evaluation: annotations is {str(path)!r}, whose categories cannot be read ({type(error).__name__}:"
            f" {error}): give a COCO json"
        ) from error
