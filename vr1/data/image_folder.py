"""A plain folder of images to predict on."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vr1.data.annotations import plain_label
from vr1.data.datamodule import MissingSplitError, RecordDataModule, Source, Split
from vr1.data.images import ImageError, count_unread, list_images, open_image
from vr1.data.source import DataReport, RecordSource
from vr1.data.validation import FaultyRecordsError, Problems
from vr1.errors import UserError
from vr1.types import DetectionRecord, as_boxes

_log = logging.getLogger(__name__)


class ImageFolderSource(RecordSource):
    """Images without ground truth.

    Each is decoded once when the source is made, which takes far less time than a model's answer: a damaged one is left
    out and reported, and the others are predicted on.

    Args:
        images: folder of images.
        categories: what to find in each of them.

    Attributes:
        report: what was left out.

    Raises:
        UserError: no such folder, no image in it that can be read, or no category.
    """

    def __init__(self, images: Path, categories: Sequence[str]) -> None:
        if not categories:
            raise UserError("data.categories is empty: name what to find, such as [raccoon]")
        paths, self.categories = list_images(images), tuple(map(plain_label, categories))
        with ThreadPoolExecutor() as pool:
            tried = list(pool.map(_try, paths))
        self.paths = [path for path, (size, _) in zip(paths, tried, strict=True) if size is not None]
        self.image_sizes = np.array([size for size, _ in tried if size is not None], np.int64).reshape(-1, 2)
        problems = Problems(str(images))
        for path, (_, error) in zip(paths, tried, strict=True):
            if error is not None:
                problems.add("image file unreadable", str(error), path.name)
        if not self.paths:
            raise FaultyRecordsError(problems)
        notes = count_unread((path for path in images.iterdir() if path.is_file()), every=True)
        self.report = DataReport(
            records=len(self.paths), images=len(self.paths), objects=0, problems=problems, notes=tuple(notes)
        )
        if len(problems) or notes:
            _log.warning("%s", self.report)

    def reports(self) -> list[DataReport]:
        """The report of the folder."""
        return [self.report]

    def origin(self, index: int) -> str:
        """The path of the image."""
        return str(self.paths[index])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> DetectionRecord:
        """Decode one image.

        Raises:
            ImageError: it cannot be read.
        """
        return DetectionRecord(
            image=open_image(self.paths[index]),
            boxes_xyxy=as_boxes([]),
            labels=(),
            categories=self.categories,
            image_id=index + 1,
            origin=str(self.paths[index]),
            areas=np.zeros(0),
            crowd=np.zeros(0, dtype=bool),
        )


def _try(path: Path) -> tuple[tuple[int, int] | None, ImageError | None]:
    """The size of an image that can be decoded, or the error."""
    try:
        return open_image(path).size, None
    except ImageError as error:
        return None, error


class ImageFolderDataModule(RecordDataModule):
    """A folder of images, for ``predict`` alone.

    Args:
        images: folder of images.
        categories: what to find.
        eval_batch_size: images per batch.
        num_workers: worker processes of the loader.
    """

    def __init__(self, images: Path, categories: list[str], eval_batch_size: int = 16, num_workers: int = 1) -> None:
        super().__init__(eval_batch_size=eval_batch_size, num_workers=num_workers)
        self.images, self.categories = Path(images), categories

    @property
    def skips_bad_records(self) -> bool:
        """True: an image that the model cannot take keeps no other from being predicted on."""
        return True

    def read(self, split: Split) -> Source:
        """The images of the folder.

        Raises:
            MissingSplitError: the split is another than ``predict``.
        """
        if split != "predict":
            raise MissingSplitError(
                f"data={self.images}: a folder of images has no boxes, so it has no {split} split and can only be"
                " predicted on; run vr1 predict, or give a data module with annotations"
            )
        return ImageFolderSource(self.images, self.categories)
