"""Chooses among the records of a data set by what the settings ask for, and orders them by number of objects."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from vr1.data.annotations import CocoTable
from vr1.data.coco_layout import Portion
from vr1.data.validation import SHOWN
from vr1.errors import UserError
from vr1.types import DetectionRecord

_log = logging.getLogger(__name__)


@runtime_checkable
class Counted(Protocol):
    """A source that knows, without decoding an image, how many objects and pixels each of its R records has."""

    object_counts: NDArray[np.int64]
    pixel_counts: NDArray[np.int64]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> DetectionRecord: ...


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which training records to take, and in which order. Evaluation always takes all of them.

    Args:
        min_objects: leave out records with fewer objects; 1 leaves out those to be answered with an empty list.
        max_objects: leave out records with more objects, whose answers are long.
        hard_share: share of records with more than ``hard_above`` objects, 0 to 1. It is reached by leaving out, by
            chance, some of the kind of which there are too many; none is repeated.
        hard_above: number of objects above which a record is hard.
        curriculum: give the records in the order of their number of objects, the fewest first, equal ones in random
            order. The data module then does not shuffle, which would undo it; every epoch starts anew.

    Raises:
        UserError: if a number is out of range.

    Source: Vision-R1, arXiv 2503.18013: 1 to 30 instances (released code), about half of the records above 10.
    """

    min_objects: int = 0
    max_objects: int | None = None
    hard_share: float | None = None
    hard_above: int = 10
    curriculum: bool = False

    def __post_init__(self) -> None:
        least, most = self.min_objects, self.max_objects
        if least < 0 or (most is not None and most < least):
            raise UserError(
                f"selection: min_objects={least}, max_objects={most}: needs 0 <= min_objects <= max_objects"
            )
        if self.hard_share is not None and not 0 <= self.hard_share <= 1:
            raise UserError(f"selection: hard_share={self.hard_share}: give a share between 0 and 1, or leave it out")
        if self.hard_above < 0:
            raise UserError(f"selection: hard_above={self.hard_above}: give a number of objects from 0")

    def rows(self, object_counts: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """The chosen rows of a source, in its own order or in that of the curriculum.

        Args:
            object_counts: ``[R]`` number of objects of each record.
            seed: draws what is left out, and the order of records with equally many objects.

        Raises:
            UserError: if no record is left.

        Example:
            >>> Selection(max_objects=30, curriculum=True).rows(np.array([9, 40, 2, 5]), seed=0).tolist()
            [2, 3, 0]
            >>> len(Selection(hard_share=0.5).rows(np.array([1, 2, 3, 4, 20]), seed=0))
            2
        """
        keep = object_counts >= self.min_objects
        if self.max_objects is not None:
            keep &= object_counts <= self.max_objects
        rows = np.flatnonzero(keep)
        rng = np.random.default_rng(seed)
        if self.hard_share is not None:
            rows = self._balanced(rows, object_counts[rows] > self.hard_above, self.hard_share, rng)
        if not len(rows):
            raise UserError(f"{self}: none of {len(object_counts)} records is left; widen the selection")
        if self.curriculum:
            rows = rows[np.lexsort((rng.random(len(rows)), object_counts[rows]))]
        return rows

    def _balanced(
        self, rows: NDArray[np.int64], is_hard: NDArray[np.bool_], share: float, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """As many rows as can be, in order, of which ``share`` are hard."""
        hard, easy = rng.permutation(rows[is_hard]), rng.permutation(rows[~is_hard])
        # The largest total of which neither kind has too few.
        total = min(len(hard) / share if share else np.inf, len(easy) / (1 - share) if share < 1 else np.inf)
        wanted_hard, wanted_easy = int(total * share + 1e-9), int(total * (1 - share) + 1e-9)
        return np.sort(np.concatenate([hard[:wanted_hard], easy[:wanted_easy]]))


class SelectedSource(Dataset[DetectionRecord]):
    """Some rows of a source, in a given order; a row may come several times.

    Args:
        source: R records.
        rows: ``[S]`` int64 rows of ``source``.

    Attributes:
        object_counts: ``[S]`` int64, where the source knows them.
        pixel_counts: likewise.
        largest: index of a record with the most pixels; 0 where that is not known.
    """

    object_counts: NDArray[np.int64]
    pixel_counts: NDArray[np.int64]

    def __init__(self, source: Any, rows: NDArray[np.int64]) -> None:
        self.source, self.rows, self.largest = source, rows, 0
        if isinstance(source, Counted) and len(rows):
            self.object_counts, self.pixel_counts = source.object_counts[rows], source.pixel_counts[rows]
            self.largest = int(self.pixel_counts.argmax())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> DetectionRecord:
        """Decode one record.

        Raises:
            IndexError: if there is no such record.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self.source[int(self.rows[index])]


def select(source: Any, selection: Selection, split: str, seed: int) -> Any:
    """The source of a split after selection: the records of training are chosen from, all others stay as they are.

    Raises:
        UserError: if no record is left, or the source does not know its numbers of objects.
    """
    if split != "train" or selection == Selection():
        return source
    if not isinstance(source, Counted):
        raise UserError(
            f"{selection}: {type(source).__name__} does not know how many objects its records have; leave the "
            "selection out, or use a source with annotations"
        )
    rows = selection.rows(source.object_counts, seed)
    _log.info("%d of %d training records are selected by %s", len(rows), len(source), selection)
    return SelectedSource(source, rows)


def choose_categories(table: CocoTable, wanted: Sequence[str] | None, annotations: Path, notes: list[str]) -> CocoTable:
    """The table of the categories to ask for.

    Args:
        table: everything in the file.
        wanted: names in the order of the question; None for all that have an object, in the order of the file.
        annotations: the file, for messages.
        notes: takes what is left out.

    Raises:
        UserError: if a wanted name is not in the file or given twice, or the file has no object to name a category.
    """
    used = np.unique(table.category_rows).tolist()
    if wanted is None:
        if len(table) and not used:
            raise UserError(
                f"annotations={annotations}: none of its {len(table)} images has an object, so there is no category to "
                "ask for; give the right file, or name the categories in the setting categories"
            )
        # As a set, since of referring expressions there are a hundred thousand.
        asked = set(used)
        if unused := [name for row, name in enumerate(table.categories) if row not in asked]:
            more = ", ..." if len(unused) > SHOWN else ""
            notes.append(f"categories without any object, not asked for: {', '.join(unused[:SHOWN])}{more}")
        return table.keep_categories(used)
    rows = {name.casefold(): row for row, name in enumerate(table.categories)}
    folded = [" ".join(name.split()).casefold() for name in wanted]
    unknown = [name for name, key in zip(wanted, folded, strict=True) if key not in rows]
    if unknown or len(set(folded)) < len(folded) or not folded:
        state = f"{', '.join(unknown)} not in the file" if unknown else "empty, or a name twice"
        raise UserError(f"categories={list(wanted)}: {state}; {annotations} has {', '.join(table.categories)}")
    chosen = table.keep_categories([rows[key] for key in folded])
    if left_out := len(table.areas) - len(chosen.areas):
        notes.append(f"{left_out} objects are of categories that are not asked for")
    return chosen


def without_empty(table: CocoTable, notes: list[str]) -> CocoTable:
    """The table of the images that have objects."""
    keep = table.objects_per_image() > 0
    if not keep.all():
        notes.append(f"{(~keep).sum()} images without objects are left out (empty_images: skip)")
    return table.keep_images(keep)


def take_portion(table: CocoTable, portion: Portion, annotations: Path) -> CocoTable:
    """The table of the images of a portion.

    Raises:
        UserError: if the file has too few images for the portion to hold one.
    """
    names = table.file_names
    chosen = portion.of(names)
    if names and not chosen:
        raise UserError(
            f"annotations={annotations}: none of its {len(names)} images falls into the part {portion.start:g} to "
            f"{portion.stop:g} of them; a data set this small needs a file of its own for each split"
        )
    return table.keep_images(np.array([name in chosen for name in names], np.bool_))
