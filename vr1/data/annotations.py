"""Annotations as compact arrays: checked boxes, and the table that every annotated data set is read into."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vr1.data.validation import SHOWN
from vr1.types import Boxes, as_boxes

Corners = tuple[float, float, float, float]

_ROUNDING = 1.0
"""Pixels by which exporters let boxes reach outside their image; more than that is reported as a warning."""

BOX_FAULTS = (
    "box with NaN or infinite numbers",
    "box of negative size",
    "box of zero size",
    "box entirely outside its image",
    "box within 0..1, where shares of the image lie and not pixels: multiply it by width and height",
)
"""What `box_fault` may find."""


def plain_label(name: str) -> str:
    """A label in one spelling: Unicode NFC, and no spaces around it or in a row.

    Example:
        >>> plain_label(" Ka\u0308fer  rot ")
        'Käfer rot'
    """
    return unicodedata.normalize("NFC", " ".join(name.split()))


def box_fault(box: Sequence[float], size: tuple[float, float]) -> str | None:
    """What is wrong with the corners ``[x1, y1, x2, y2]`` of a box on an image of ``size``, in pixels; None if nothing.

    Returns:
        One of `BOX_FAULTS`, or None.

    Example:
        >>> box_fault((5, 5, 5, 9), (10, 10)), box_fault((1, 1, 2, 2), (10, 10))
        ('box of zero size', None)
    """
    not_finite, negative, zero, outside, shares = BOX_FAULTS
    if not all(map(math.isfinite, box)):
        return not_finite
    x1, y1, x2, y2 = box
    if x2 < x1 or y2 < y1:
        return negative
    if x2 == x1 or y2 == y1:
        return zero
    if x1 >= size[0] or y1 >= size[1] or x2 <= 0 or y2 <= 0:
        return outside
    return shares if min(x1, y1) >= 0 and max(x2, y2) <= 1 and min(size) > 2 else None


class BoxClipper:
    """Clips boxes to their images, and remembers those that reached outside by more than exporters' rounding.

    Example:
        >>> clip = BoxClipper()
        >>> clip((1, 2, 50, 20), (40, 30), "a.jpg"), clip((1, 2, 40.5, 20), (40, 30), "b.jpg")
        (((1, 2, 40, 20), False), ((1, 2, 40, 20), True))
        >>> clip.notes()
        ['1 boxes reached outside their image by more than 1 px and were clipped to it (a.jpg)']
    """

    def __init__(self) -> None:
        self._clipped: list[str] = []

    def __call__(self, box: Sequence[float], size: tuple[float, float], image: str) -> tuple[Corners, bool]:
        """Clip one box.

        Args:
            box: corners ``[x1, y1, x2, y2]`` in pixels, in which `box_fault` found no fault.
            size: width and height of the image in pixels.
            image: file name of the image, for the notes.

        Returns:
            The part of the box inside the image, and whether it reached outside by no more than rounding.
        """
        (x1, y1, x2, y2), (width, height) = box, size
        outside = max(-x1, -y1, x2 - width, y2 - height)
        if outside > _ROUNDING:
            self._clipped.append(image)
        return (max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)), 0 < outside <= _ROUNDING

    def notes(self) -> list[str]:
        """What a reader of the data should know."""
        if not self._clipped:
            return []
        images = list(dict.fromkeys(self._clipped))
        names = ", ".join(images[:SHOWN]) + (", ..." if len(images) > SHOWN else "")
        return [
            f"{len(self._clipped)} boxes reached outside their image by more than {_ROUNDING:g} px and were clipped to"
            f" it ({names})"
        ]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AnnotationTable:
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
        areas: ``[A]`` float64 square pixels.
        crowd: ``[A]`` bool.
        rounded: ``[A]`` bool, boxes that reached outside their image by at most a pixel and were clipped.
        referring: the categories are expressions, each for one object of one image.
        references: for each of the I images, the paths of those that are shown with it; empty where none has any.
        reference_sizes: their (width, height) in pixels, in the same order.
        image_first: whether an image is shown before them, and not after them.
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
    rounded: NDArray[np.bool_]
    referring: bool = False
    references: tuple[tuple[str, ...], ...] = ()
    reference_sizes: tuple[tuple[tuple[int, int], ...], ...] = ()
    image_first: bool = False

    def __len__(self) -> int:
        return len(self.image_ids)

    def objects_of(self, image_row: int) -> slice:
        """The rows of the objects of one image."""
        first, last = np.searchsorted(self.image_rows, [image_row, image_row + 1])
        return slice(int(first), int(last))

    def objects_per_image(self) -> NDArray[np.int64]:
        """``[I]`` number of objects."""
        return np.bincount(self.image_rows, minlength=len(self))

    def keep_images(self, keep: NDArray[np.bool_]) -> "AnnotationTable":
        """The table of the images where ``keep`` ``[I]`` is true, in the same order."""
        rows = np.flatnonzero(keep)
        table = replace(
            self,
            image_ids=[self.image_ids[row] for row in rows],
            file_names=[self.file_names[row] for row in rows],
            sizes=self.sizes[rows],
            references=tuple(self.references[row] for row in rows) if self.references else (),
            reference_sizes=tuple(self.reference_sizes[row] for row in rows) if self.references else (),
        )
        new_rows = np.cumsum(keep) - 1
        return table._keep_objects(keep[self.image_rows], image_rows=new_rows[self.image_rows])

    def merge_images(self, into: NDArray[np.int64]) -> "AnnotationTable":
        """The table of images of which some are the same.

        Args:
            into: ``[I]`` row of the image that each belongs to: its own, or that of an earlier one.

        Returns:
            The table of the images that belong to themselves, with the objects of all that belong to them; of objects
            that several of these have alike, one.
        """
        images = into[self.image_rows]
        order = np.argsort(images, kind="stable")
        first: dict[tuple[object, ...], int] = {}
        rows = []
        for row in order.tolist():
            same = int(images[row]), int(self.category_rows[row]), *self.boxes_xyxy[row].tolist()
            if first.setdefault(same, int(self.image_rows[row])) == self.image_rows[row]:
                rows.append(row)
        merged = replace(
            self,
            image_rows=images[rows],
            category_rows=self.category_rows[rows],
            boxes_xyxy=self.boxes_xyxy[rows],
            areas=self.areas[rows],
            crowd=self.crowd[rows],
            rounded=self.rounded[rows],
        )
        return merged.keep_images(into == np.arange(len(self)))

    def with_categories(self, names: Sequence[str]) -> "AnnotationTable":
        """The table with further categories, of which it has no object, after its own."""
        known = {name.casefold() for name in self.categories}
        return replace(self, categories=(*self.categories, *(name for name in names if name.casefold() not in known)))

    def keep_categories(self, category_rows: list[int]) -> "AnnotationTable":
        """The table of these categories, in the order given, without the objects of others."""
        new_rows = np.full(len(self.categories), -1)
        new_rows[category_rows] = np.arange(len(category_rows))
        table = replace(
            self,
            categories=tuple(self.categories[row] for row in category_rows),
            category_rows=new_rows[self.category_rows],
        )
        return table._keep_objects(table.category_rows >= 0, image_rows=self.image_rows)

    def _keep_objects(self, keep: NDArray[np.bool_], image_rows: NDArray[np.int64]) -> "AnnotationTable":
        return replace(
            self,
            image_rows=image_rows[keep],
            category_rows=self.category_rows[keep],
            boxes_xyxy=self.boxes_xyxy[keep],
            areas=self.areas[keep],
            crowd=self.crowd[keep],
            rounded=self.rounded[keep],
        )


class TableBuilder:
    """Builds a table from images and their objects, in the order in which they are added.

    Args:
        referring: the categories are expressions; see `AnnotationTable`.
        image_first: whether images are shown before their references; see `AnnotationTable`.

    Example:
        >>> builder = TableBuilder()
        >>> builder.add_image("a.jpg", (40, 30))
        >>> builder.add_object("cat", (1, 2, 40.5, 20))
        >>> table = builder.table()
        >>> table.categories, table.boxes_xyxy.tolist(), table.rounded.tolist()
        (('cat',), [[1.0, 2.0, 40.0, 20.0]], [True])
    """

    def __init__(self, *, referring: bool = False, image_first: bool = False) -> None:
        self._referring, self._image_first = referring, image_first
        self._references: list[tuple[tuple[str, tuple[int, int]], ...]] = []
        self._names: list[str] = []
        self._sizes: list[tuple[int, int]] = []
        self._categories: dict[str, int] = {}
        self._spellings: list[str] = []
        self._image_rows: list[int] = []
        self._category_rows: list[int] = []
        self._boxes: list[Corners] = []
        self._crowd: list[bool] = []
        self._rounded: list[bool] = []
        self._clip = BoxClipper()

    def add_image(
        self, file_name: str, size: tuple[int, int], references: Sequence[tuple[str, tuple[int, int]]] = ()
    ) -> None:
        """The next image.

        Args:
            file_name: its path in the folder of images.
            size: width and height in pixels.
            references: path and size of each image that is shown with it.
        """
        self._names.append(file_name)
        self._references.append(tuple(references))
        self._sizes.append(size)

    def add_category(self, name: str) -> int:
        """The row of a category; names that differ only in case and spaces are one, under the first spelling."""
        name = plain_label(name)
        row = self._categories.setdefault(name.casefold(), len(self._categories))
        if row == len(self._spellings):
            self._spellings.append(name)
        return row

    def add_object(self, category: str, box: Sequence[float], *, crowd: bool = False) -> None:
        """An object of the last image, in whose box `box_fault` found no fault; the box is clipped to the image."""
        self._image_rows.append(len(self._names) - 1)
        self._category_rows.append(self.add_category(category))
        clipped, rounded = self._clip(box, self._sizes[-1], self._names[-1])
        self._boxes.append(clipped)
        self._rounded.append(rounded)
        self._crowd.append(crowd)

    def notes(self) -> list[str]:
        """What a reader of the data should know."""
        return self._clip.notes()

    def table(self) -> AnnotationTable:
        """All that was added; images are numbered from 1, and an object's area is that of its box."""
        boxes = as_boxes(self._boxes)
        references = self._references if any(self._references) else []
        return AnnotationTable(
            image_ids=list(range(1, len(self._names) + 1)),
            file_names=list(self._names),
            sizes=np.array(self._sizes, np.int64).reshape(-1, 2),
            categories=tuple(self._spellings),
            image_rows=np.array(self._image_rows, np.int64),
            category_rows=np.array(self._category_rows, np.int64),
            boxes_xyxy=boxes,
            areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
            crowd=np.array(self._crowd, np.bool_),
            rounded=np.array(self._rounded, np.bool_),
            referring=self._referring,
            references=tuple(tuple(name for name, _ in row) for row in references),
            reference_sizes=tuple(tuple(size for _, size in row) for row in references),
            image_first=self._image_first,
        )
