"""A plain folder of images to predict on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vr1.data.datamodule import MissingSplitError, RecordDataModule, Source, Split
from vr1.data.images import list_images, open_image
from vr1.data.source import RecordSource
from vr1.errors import UserError
from vr1.types import DetectionRecord, as_boxes


class ImageFolderSource(RecordSource):
    """Images without ground truth.

    Args:
        images: folder of images.
        categories: what to find in each of them.

    Raises:
        UserError: no such folder, no image in it, or no category.
    """

    def __init__(self, images: Path, categories: Sequence[str]) -> None:
        if not categories:
            raise UserError("data.categories is empty: name what to find, such as [raccoon]")
        self.paths, self.categories = list_images(images), tuple(categories)

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
