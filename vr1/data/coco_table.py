"""A COCO annotation file as compact arrays, once it has been checked."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vr1.records import Boxes


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CocoTable:
    """Images and their objects (shape letters: I images, A objects of all images together).

    Arrays rather than one dictionary an object, since a table is copied into every worker of a data loader.

    Attributes:
        image_ids: I ids as the file gives them.
        file_names: I paths relative to the folder of images.
        sizes: ``[I, 2]`` int64 width and height as the file gives them.
        categories: category names.
        image_rows: ``[A]`` int64 rows of ``image_ids``, ascending.
        category_rows: ``[A]`` int64 rows of ``categories``.
        boxes_xyxy: ``[A, 4]`` float64 corners in pixels, inside the image.
        areas: ``[A]`` float64.
        crowd: ``[A]`` bool.
    """

    image_ids: list[int]
    file_names: list[str]
    sizes: NDArray[np.int64]
    categories: tuple[str, ...]
    image_rows: NDArray[np.int64]
    category_rows: NDArray[np.int64]
    boxes_xyxy: Boxes
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.image_ids)

    def objects_of(self, image_row: int) -> slice:
        """The rows of the objects of one image."""
        first, last = np.searchsorted(self.image_rows, [image_row, image_row + 1])
        return slice(int(first), int(last))

    def objects_per_image(self) -> NDArray[np.int64]:
        """``[I]`` number of objects."""
        return np.bincount(self.image_rows, minlength=len(self))

    def keep_images(self, keep: NDArray[np.bool_]) -> "CocoTable":
        """The table of the images where ``keep`` ``[I]`` is true, in the same order."""
        kept = np.flatnonzero(keep)
        table = replace(
            self,
            image_ids=[self.image_ids[row] for row in kept],
            file_names=[self.file_names[row] for row in kept],
            sizes=self.sizes[kept],
        )
        new_rows = np.cumsum(keep) - 1
        return table._keep_objects(keep[self.image_rows], image_rows=new_rows[self.image_rows])

    def keep_categories(self, category_rows: list[int]) -> "CocoTable":
        """The table of these categories, in the order given, without the objects of others."""
        new_rows = np.full(len(self.categories), -1)
        new_rows[category_rows] = np.arange(len(category_rows))
        table = replace(
            self,
            categories=tuple(self.categories[row] for row in category_rows),
            category_rows=new_rows[self.category_rows],
        )
        return table._keep_objects(table.category_rows >= 0, image_rows=self.image_rows)

    def _keep_objects(self, keep: NDArray[np.bool_], image_rows: NDArray[np.int64]) -> "CocoTable":
        return replace(
            self,
            image_rows=image_rows[keep],
            category_rows=self.category_rows[keep],
            boxes_xyxy=self.boxes_xyxy[keep],
            areas=self.areas[keep],
            crowd=self.crowd[keep],
        )
