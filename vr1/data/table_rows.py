"""Gathers images and boxes, one by one, into the table that every annotated folder is read into."""

from collections.abc import Sequence

import numpy as np

from vr1.data.box_checks import BoxCutter, Corners
from vr1.data.coco_table import CocoTable
from vr1.records import as_boxes


class TableRows:
    """Images with their objects, in the order in which they are added.

    Example:
        >>> rows = TableRows()
        >>> rows.add_image("a.jpg", (40, 30))
        >>> rows.add_object("cat", (1, 2, 50, 20))
        >>> table = rows.table()
        >>> table.categories, table.boxes_xyxy.tolist(), rows.notes()
        (('cat',), [[1.0, 2.0, 40.0, 20.0]], ['1 boxes stuck out of their image by more than 1 px and were cut to it'])
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sizes: list[tuple[int, int]] = []
        self._categories: dict[str, int] = {}
        self._spellings: list[str] = []
        self._image_rows: list[int] = []
        self._category_rows: list[int] = []
        self._boxes: list[Corners] = []
        self._crowd: list[bool] = []
        self._cut = BoxCutter()

    def add_image(self, file_name: str, size: tuple[int, int]) -> None:
        """The next image: its path relative to the folder of images, its width and height in pixels."""
        self._names.append(file_name)
        self._sizes.append(size)

    def add_category(self, name: str) -> int:
        """The row of a category; names that differ only in case and spaces are one, under the first spelling."""
        name = " ".join(name.split())
        row = self._categories.setdefault(name.casefold(), len(self._categories))
        if row == len(self._spellings):
            self._spellings.append(name)
        return row

    def add_object(self, category: str, box: Sequence[float], *, crowd: bool = False) -> None:
        """An object of the last image, whose box `box_fault` found sound; it is cut to the image."""
        self._image_rows.append(len(self._names) - 1)
        self._category_rows.append(self.add_category(category))
        self._boxes.append(self._cut(box, self._sizes[-1]))
        self._crowd.append(crowd)

    def notes(self) -> list[str]:
        """What was put right."""
        return self._cut.notes()

    def table(self) -> CocoTable:
        """All that was added; images are numbered from 1, and an object's area is that of its box."""
        boxes = as_boxes(self._boxes)
        return CocoTable(
            image_ids=list(range(1, len(self._names) + 1)),
            file_names=list(self._names),
            sizes=np.array(self._sizes, np.int64).reshape(-1, 2),
            categories=tuple(self._spellings),
            image_rows=np.array(self._image_rows, np.int64),
            category_rows=np.array(self._category_rows, np.int64),
            boxes_xyxy=boxes,
            areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
            crowd=np.array(self._crowd, np.bool_),
        )
