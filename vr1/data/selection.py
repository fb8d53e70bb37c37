"""Selects training records by their number of objects, and orders them."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vr1.data.source import DataReport, RecordSource
from vr1.errors import UserError
from vr1.types import DetectionRecord

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which training records to take, and in which order. Evaluation always takes all of them.

    Args:
        min_objects: leave out records with fewer objects; 1 leaves out those to be answered with an empty list.
        max_objects: leave out records with more objects, whose answers are long.
        hard_share: share of records with more than ``hard_above`` objects, 0 to 1. It is reached by leaving out, at
            random, some of the kind of which there are too many; none is repeated.
        hard_above: number of objects above which a record is hard.
        curriculum: order the records by their number of objects, the fewest first, equal ones in random order. The data
            module then does not shuffle, which would undo it; every epoch has the same order.

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
                f"data.selection: min_objects={least}, max_objects={most}: needs 0 <= min_objects <= max_objects"
            )
        if self.hard_share is not None and not 0 <= self.hard_share <= 1:
            raise UserError(
                f"data.selection: hard_share={self.hard_share}: give a share between 0 and 1, or leave it out"
            )
        if self.hard_above < 0:
            raise UserError(f"data.selection: hard_above={self.hard_above}: give a number of objects from 0")

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
            raise UserError(f"data.selection={self}: none of {len(object_counts)} records is left; widen the selection")
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
        num_hard, num_easy = int(total * share + 1e-9), int(total * (1 - share) + 1e-9)
        return np.sort(np.concatenate([hard[:num_hard], easy[:num_easy]]))


class SelectedSource(RecordSource):
    """Some rows of a source, in a given order; a row may come several times.

    Args:
        source: R records.
        rows: ``[S]`` int64 rows of ``source``.
    """

    def __init__(self, source: Any, rows: NDArray[np.int64]) -> None:
        self.source, self.rows = source, rows
        if isinstance(source, RecordSource):
            self.object_counts = None if source.object_counts is None else source.object_counts[rows]
            self.image_sizes = None if source.image_sizes is None else source.image_sizes[rows]
            if source.reference_sizes:
                self.reference_sizes = [source.reference_sizes[row] for row in rows.tolist()]

    def origin(self, index: int) -> str:
        """What the source calls the record."""
        row = int(self.rows[index])
        return self.source.origin(row) if isinstance(self.source, RecordSource) else f"record {row}"

    def reports(self) -> list[DataReport]:
        """The reports of the source."""
        return self.source.reports() if isinstance(self.source, RecordSource) else []

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
    """The source of a split after selection, which applies to training records alone.

    Raises:
        UserError: if no record is left, or the source does not know its numbers of objects.
    """
    if split != "train" or selection == Selection():
        return source
    if not isinstance(source, RecordSource) or source.object_counts is None:
        raise UserError(
            f"data.selection: {type(source).__name__} does not know how many objects its records have; leave the"
            " selection out, or use a source with annotations"
        )
    rows = selection.rows(source.object_counts, seed)
    _log.info("%d of %d training records are selected by %s", len(rows), len(source), selection)
    return SelectedSource(source, rows)
