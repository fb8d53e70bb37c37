"""What every source of records has in common: counts, reports of what was left out, replacements, a cache in memory."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from vr1.data.images import ImageError
from vr1.data.validation import Problems
from vr1.errors import UserError
from vr1.types import DetectionRecord, Replacement

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DataReport:
    """What a source has read, what it has left out and what it has changed.

    Attributes:
        records: number of questions.
        images: number of images that they are about.
        objects: number of objects on those images, crowd regions included.
        problems: faulty records, by kind; all of them are left out.
        notes: what else was left out, merged, clipped or renumbered.
        rounded: images with a box that reached outside by at most a pixel, as many exporters round, and was clipped.
            No reason for a warning; `vr1 check` lists them.
    """

    records: int
    images: int
    objects: int
    problems: Problems
    notes: tuple[str, ...]
    rounded: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The report as a few lines of text."""
        lines = [f"{self.problems.source}: {self.records} records on {self.images} images with {self.objects} objects"]
        lines.extend(f"  note: {note}" for note in self.notes)
        if len(self.problems):
            lines.append(f"left out of {self.problems}")
        return "\n".join(lines)


class RecordSource(Dataset[DetectionRecord], ABC):
    """Records by index (shape letter: R records).

    Attributes:
        object_counts: ``[R]`` int64 boxes that answer each record's question, crowd regions left out; None where that
            is known only once a record is decoded.
        image_sizes: ``[R, 2]`` int64 width and height of each record's image; None likewise.
        reference_sizes: R rows of the (width, height) of the further images of a record; empty where no record has any.
    """

    object_counts: NDArray[np.int64] | None = None
    image_sizes: NDArray[np.int64] | None = None
    reference_sizes: Sequence[Sequence[tuple[int, int]]] = ()

    @property
    def pixel_counts(self) -> NDArray[np.int64] | None:
        """``[R]`` int64 pixels of each record's image; None where its size is not known in advance."""
        return None if self.image_sizes is None else self.image_sizes.prod(1)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> DetectionRecord:
        """Decode one record.

        Raises:
            IndexError: there is no such record.
            ImageError: its image cannot be used.
        """

    def origin(self, index: int) -> str:
        """What to call a record in a message, without decoding its image."""
        return f"record {index}"

    @property
    def largest(self) -> int:
        """Index of a record with the most pixels; 0 where these are not known in advance."""
        pixels = self.pixel_counts
        return 0 if pixels is None or not len(pixels) else int(pixels.argmax())

    def reports(self) -> list[DataReport]:
        """The reports of this source, or of the sources that it combines."""
        return []


def decode_or_next(decode: Callable[[int], DetectionRecord], index: int, length: int, skip: bool) -> DetectionRecord:
    """Decode one record, or the next one that can be decoded.

    Args:
        decode: makes the record of a row, 0 to ``length - 1``.
        index: the record; a negative one counts from the end.
        length: number of records, at least 1.
        skip: whether another record may take its place.

    Returns:
        The record. Where it takes the place of others, its ``replaces`` names each of them with its error, and each is
        logged as a warning.

    Raises:
        IndexError: there is no such record.
        ImageError: its image cannot be decoded, and no other may take its place or can be decoded.
    """
    if not -length <= index < length:
        raise IndexError(f"record {index} of {length}")
    errors: dict[int, str] = {}
    while True:
        row = (index + len(errors)) % length
        try:
            record = decode(row)
        except ImageError as error:
            if not skip or len(errors) == length - 1:
                raise
            errors[row] = str(error)
            continue
        if not errors:
            return record
        replacements = tuple(Replacement(index=bad, error=error, used=row) for bad, error in errors.items())
        for replacement in replacements:
            _log.warning("%s", replacement)
        return replace(record, replaces=(*record.replaces, *replacements))


class CachedDataset(Dataset[DetectionRecord]):
    """A source whose first records are read once and then held in memory.

    None is ever evicted: where records come in a random order every epoch, the least recently read record is as likely
    to be next as any other.

    Args:
        source: records by index.
        capacity: how many records each process that reads holds.

    Example:
        >>> from vr1.data import SceneSource
        >>> cached = CachedDataset(SceneSource(length=3), capacity=2)
        >>> cached[0] is cached[0], cached[1] is cached[1], cached[2] is cached[2]
        (True, True, False)
    """

    def __init__(self, source: Any, capacity: int) -> None:
        self.source, self.capacity = source, capacity
        self._records: dict[int, DetectionRecord] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> DetectionRecord:
        """Read record ``index``, or take it from memory.

        Raises:
            IndexError: outside the data set.
        """
        if (record := self._records.get(index)) is None:
            record = self.source[index]
            if len(self._records) < self.capacity:
                record.image.load()
                self._records[index] = record
        return record


class NamedErrors(Dataset[DetectionRecord]):
    """A source whose errors name the record, whatever a source of the user raises.

    Args:
        source: records by index.

    Example:
        >>> class Mine:
        ...     def __getitem__(self, index):
        ...         raise KeyError("boxes")
        >>> try:
        ...     NamedErrors(Mine())[7]
        ... except KeyError as error:
        ...     print(error.__notes__)
        ['this was record 7 of Mine']
    """

    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> DetectionRecord:
        """Read record ``index``. A `UserError` names its record itself, and memory runs out at any record."""
        try:
            record: DetectionRecord = self.source[index]
        except (UserError, MemoryError):
            raise
        except Exception as error:
            origin = f" ({self.source.origin(index)})" if isinstance(self.source, RecordSource) else ""
            error.add_note(f"this was record {index} of {type(self.source).__name__}{origin}")
            raise
        return record
