"""The predictions of ``predict`` on disk: drawings, one JSON line per image, and an overview."""

import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from callbacks.outputs import RankedJsonlWriter, predictions_of, run_folder
from vr1.drawing import draw_grid, draw_prediction, draw_tile
from vr1.errors import UserError
from vr1.matching import fold_label
from vr1.types import Prediction

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def box_problems(prediction: Prediction) -> list[str]:
    """What keeps each predicted box from being an answer to the question.

    Args:
        prediction: one completion with its record and N detections.

    Returns:
        N texts: ``no area`` (the width or the height is 0), ``not requested`` (the label is none of the record's
        categories, case, surrounding blanks and a final full stop aside), both, or an empty text. Labels are not
        checked where the record has no categories, or one referring expression.

    Example:
        >>> from dataclasses import replace
        >>> from vr1.drawing.boxes import example_prediction
        >>> prediction = example_prediction()
        >>> record = replace(prediction.record, categories=("Red circle",))
        >>> box_problems(replace(prediction, record=record))
        ['', 'not requested', 'not requested']
    """
    record, detections = prediction.record, prediction.detections
    requested = {fold_label(category) for category in record.categories}
    check_labels = bool(requested) and not record.referring
    problems = []
    for (x1, y1, x2, y2), label in zip(detections.boxes_xyxy, detections.labels, strict=True):
        no_area = not (x1 < x2 and y1 < y2)
        not_requested = check_labels and fold_label(label) not in requested
        problems.append(", ".join(["no area"] * no_area + ["not requested"] * not_requested))
    return problems


class PredictionWriter(Callback):
    """Write drawings, ``predictions.jsonl`` and ``contact_sheet.png`` while predicting.

    Each line of ``predictions.jsonl`` has these fields: ``image`` (where it comes from), ``drawing`` (file name),
    ``width`` and ``height`` in pixels, ``instruction``, ``completion``, ``boxes_xyxy`` in pixels of the image,
    ``labels``, ``scores``, ``problems`` (one text per box, see :func:`box_problems`) and ``valid``. Drawings show boxes
    with a problem dashed in grey, with the problem next to the label. The file grows with every batch, so an
    interrupted run loses nothing that it predicted.

    Args:
        output_dir: folder of all files, created if missing; existing files of the same names are replaced. None takes
            ``predictions`` in the run's folder.
        sheet_images: number of images on the contact sheet; 0 writes no sheet.
        tile_size: side of one image on the sheet, in pixels.

    Note:
        A drawing has the name and the size of its image; where two images have the same name, the second drawing's name
        ends with the image's number. With several processes all names do, and all processes must see ``output_dir``.

    Raises:
        UserError: a setting is out of range, or the folder is not writable.
        TypeError: ``predict_step`` does not return a list of :class:`~vr1.types.Prediction`.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import PredictionWriter
        >>> trainer = Trainer(callbacks=[PredictionWriter("my predictions")], logger=False)

    """

    def __init__(self, output_dir: str | Path | None = None, sheet_images: int = 24, tile_size: int = 320) -> None:
        if sheet_images < 0:
            raise UserError(f"PredictionWriter: sheet_images is {sheet_images}: give 0 (no sheet) or more")
        if tile_size < 64:
            raise UserError(f"PredictionWriter: tile_size is {tile_size}: give at least 64")
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.sheet_images = sheet_images
        self.tile_size = tile_size
        self._folder = Path()
        self._writer: RankedJsonlWriter | None = None
        self._names: set[str] = set()
        self._sheet: list[Prediction] = []

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        if stage != "predict":
            return
        # On every process, also where output_dir is given: run_folder communicates between processes.
        default = run_folder(trainer) / "predictions"
        self._folder = (self.output_dir or default).expanduser()
        self._writer = RankedJsonlWriter(self, self._folder / "predictions.jsonl", trainer.global_rank)
        self._writer.open(append=False)
        self._names, self._sheet = set(), []

    @override
    def on_predict_batch_end(
        self,
        trainer: "pl.Trainer",
        pl_module: "pl.LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self._writer is not None
        for prediction in predictions_of(self, outputs):
            name = self._name(prediction, numbered=trainer.world_size > 1)
            problems = box_problems(prediction)
            drawing = draw_prediction(prediction, judge=False, problems=problems)
            # Thin coloured lines keep their colour in a JPEG only without chroma subsampling; PNG ignores both options.
            drawing.save(self._folder / name, quality=95, subsampling=0)
            self._writer.write(_row(prediction, name, problems))
            if trainer.is_global_zero and len(self._sheet) < self.sheet_images:
                self._sheet.append(prediction)

    @override
    def on_predict_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._close()
        trainer.strategy.barrier("PredictionWriter")
        if not trainer.is_global_zero:
            return
        assert self._writer is not None
        self._writer.merge(trainer.world_size)
        if self._sheet:
            tiles = [
                draw_tile(prediction, self.tile_size, judge=False, problems=box_problems(prediction))
                for prediction in self._sheet
            ]
            draw_grid(tiles, f"{len(tiles)} predictions", legend=False).save(self._folder / "contact_sheet.png")
        self._sheet = []
        rank_zero_info(f"predictions: {self._writer.path}; drawings in the same folder, overview in contact_sheet.png")

    @override
    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        self._close()

    @override
    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _name(self, prediction: Prediction, *, numbered: bool) -> str:
        """An unused file name, as close to the image's own name as possible."""
        # Origins other than files (a generator, a line of an annotation file) may contain any character.
        name = re.sub(r'[\x00-\x1f<>:"|?*\\/]', "_", Path(prediction.record.origin).name)[-150:].strip(". ") or "image"
        if not name.lower().endswith(IMAGE_SUFFIXES):
            name += ".png"
        stem, suffix = name[: name.rindex(".")], name[name.rindex(".") :]
        candidate = f"{stem}_{prediction.record.image_id}{suffix}" if numbered else name
        count = 1
        while candidate.lower() in self._names or candidate == "contact_sheet.png":
            extra = "" if count == 1 else f"_{count}"
            candidate = f"{stem}_{prediction.record.image_id}{extra}{suffix}"
            count += 1
        # Compared without case, as some file systems do.
        self._names.add(candidate.lower())
        return candidate


def _row(prediction: Prediction, drawing: str, problems: list[str]) -> dict[str, Any]:
    width, height = prediction.record.image_size
    return {
        "image": prediction.record.origin,
        "drawing": drawing,
        "width": width,
        "height": height,
        "instruction": prediction.instruction,
        "completion": prediction.completion,
        "boxes_xyxy": [[round(float(value), 2) for value in box] for box in prediction.detections.boxes_xyxy],
        "labels": list(prediction.detections.labels),
        "scores": [round(float(score), 4) for score in prediction.detections.scores],
        "problems": problems,
        "valid": prediction.detections.valid,
    }
