"""Predictions.

Keep what ``predict`` finds: every image with its boxes drawn in, all boxes in one file, and a sheet to look them over.
"""

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
from vr1.types import Prediction

PICTURES = (".png", ".jpg", ".jpeg")


class PredictionWriter(Callback):
    """Write drawings, ``predictions.jsonl`` and ``contact_sheet.png`` while predicting.

    Each line of ``predictions.jsonl`` has ``image`` (where it came from), ``drawing`` (file name), ``width`` and
    ``height``, ``instruction``, ``completion``, ``boxes_xyxy`` in pixels of the image, ``labels``, ``scores`` and
    ``valid``. It is written as predictions come, so an interrupted run keeps what it had.

    Args:
        output_dir: folder of all files, made if it is missing; files of the same names in it are replaced. None takes
            ``predictions`` in the run's folder.
        sheet_images: how many images the contact sheet shows; 0 leaves it out.
        tile_size: side of one image's place on the sheet in pixels.

    Note:
        A drawing has the name and the size of its image; a second image of the same name gets its number as well. With
        several processes all names carry the number, and ``output_dir`` must be a folder that all of them see.

        Wants ``predict_step`` to return lists of :class:`~vr1.types.Prediction`.

    Raises:
        UserError: if a setting is out of range, or the folder cannot be written to.
        TypeError: if ``predict_step`` returns something else.

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
        self._lines: RankedJsonlWriter | None = None
        self._names: set[str] = set()
        self._sheet: list[Prediction] = []

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        if stage != "predict":
            return
        # Asked on every process, also where the answer is not needed: the processes talk to each other over it.
        default = run_folder(trainer) / "predictions"
        self._folder = (self.output_dir or default).expanduser()
        self._lines = RankedJsonlWriter(self, self._folder / "predictions.jsonl", trainer.global_rank)
        self._lines.open(anew=True)
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
        assert self._lines is not None
        for prediction in predictions_of(self, outputs):
            name = self._name(prediction, numbered=trainer.world_size > 1)
            # Thin coloured lines keep their colour in a JPEG only without chroma subsampling; PNG ignores both options.
            draw_prediction(prediction, judge=False).save(self._folder / name, quality=95, subsampling=0)
            self._lines.write(_row(prediction, name))
            if trainer.is_global_zero and len(self._sheet) < self.sheet_images:
                self._sheet.append(prediction)

    @override
    def on_predict_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._close()
        trainer.strategy.barrier("PredictionWriter")
        if not trainer.is_global_zero:
            return
        assert self._lines is not None
        self._lines.merge(trainer.world_size)
        if self._sheet:
            tiles = [draw_tile(prediction, self.tile_size, judge=False) for prediction in self._sheet]
            draw_grid(tiles, f"{len(tiles)} predictions", legend=False).save(self._folder / "contact_sheet.png")
        self._sheet = []
        rank_zero_info(f"predictions: {self._lines.path}, the images beside it, an overview in contact_sheet.png")

    @override
    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        self._close()

    @override
    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._lines is not None:
            self._lines.close()

    def _name(self, prediction: Prediction, *, numbered: bool) -> str:
        """A file name that is the image's own as far as possible and was not given before."""
        # Origins other than files (a generator, a line of an annotation file) may hold any character.
        name = re.sub(r'[\x00-\x1f<>:"|?*\\/]', "_", Path(prediction.record.origin).name)[-150:].strip(". ") or "image"
        if not name.lower().endswith(PICTURES):
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


def _row(prediction: Prediction, drawing: str) -> dict[str, Any]:
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
        "valid": prediction.detections.valid,
    }
