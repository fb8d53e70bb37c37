"""COCO annotations in an ordinary folder as a LightningDataModule."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

from vr1.data.annotated import AnnotatedDataModule, Reader
from vr1.data.coco_layout import CocoSplit, coco_splits
from vr1.data.coco_objects import BoxFormat
from vr1.data.coco_reader import read_coco
from vr1.data.datamodule import MissingSplitError, Source, Split
from vr1.data.image_files import ImageFolder
from vr1.data.splits import FOLDER_SPLITS
from vr1.errors import UserError

__all__ = ["CocoDataModule", "CocoSplit", "coco_splits"]


class CocoDataModule(AnnotatedDataModule):
    """Any folder of images with a COCO json: COCO's own layout, that of a tool, or one file that is divided by image.

    Args:
        root: the folder; see `coco_splits` for the layouts that are understood.
        report: which split ``test`` and ``predict`` take; ``val`` for COCO, whose test annotations are not public.
        images: folder of the images, relative to ``root``; None finds the one in which the listed names exist.
        box_format: what ``bbox`` holds; None takes COCO's ``xywh`` and refuses what looks like corners.
        settings: questions, faulty records, selection and loading; see `AnnotatedDataModule` and `RecordDataModule`.
    """

    def __init__(
        self,
        root: Path,
        report: Literal["val", "test"] = "test",
        images: Path | None = None,
        box_format: Literal["xywh", "xyxy"] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if report not in ("val", "test"):
            raise UserError(f"data.report={report!r} must be val or test")
        if box_format not in (None, "xyxy", "xywh"):
            raise UserError(f"data.box_format={box_format!r} must be xywh or xyxy")
        self.root, self.report, self.images = Path(root), report, images
        self.box_format: BoxFormat | None = box_format

    def read(self, split: Split) -> Source:
        """The records of one split; ``predict`` takes those that are tested on.

        Raises:
            MissingSplitError: the folder has no such split.
            UserError: its annotations or images are faulty.
        """
        splits = coco_splits(self.root, images=self.images)
        name = "valid" if split in ("test", "predict") and self.report == "val" else FOLDER_SPLITS[split]
        if name not in splits:
            raise MissingSplitError(
                f"{self.root}: there is no {name} split, only {', '.join(splits)}; add its annotations"
            )
        files = splits[name]
        if name == "train":
            return self.train_on(self.open(*files, read=self._reader(files)))
        training = splits.get("train")
        # A single file that is divided by image has one list of categories already.
        asked = None
        if training is not None and training.annotations != files.annotations:
            asked = self.asked_in_training(training.annotations, self._reader(training))
        return self.open(*files, read=self._reader(files), training_categories=asked)

    def _reader(self, files: CocoSplit) -> Reader:
        return partial(read_coco, box_format=self.box_format, images=ImageFolder(files.images))
