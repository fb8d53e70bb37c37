"""Several sources as one, each record knowing the set it belongs to."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from vr1.data.selection import Counted
from vr1.records import DetectionRecord


class SetsSource(Dataset[DetectionRecord]):
    """Several sources one after the other; every record says in ``set_name`` which one it is from.

    Args:
        sources: by name of the set; a source whose records have a ``set_name`` already keeps it.

    Attributes:
        object_counts: ``[R]`` int64, where all sources know theirs.
        pixel_counts: likewise.
        largest: index of a record with the most pixels; 0 where that is not known.

    Raises:
        ValueError: if there is no source.
    """

    object_counts: NDArray[np.int64]
    pixel_counts: NDArray[np.int64]

    def __init__(self, sources: dict[str, Any]) -> None:
        if not sources:
            raise ValueError("data: no set is named; give at least one")
        self.names, self.sources = list(sources), list(sources.values())
        self.starts = np.cumsum([0, *map(len, self.sources)])
        self.largest = 0
        if all(isinstance(source, Counted) for source in self.sources):
            self.object_counts = np.concatenate([source.object_counts for source in self.sources])
            self.pixel_counts = np.concatenate([source.pixel_counts for source in self.sources])
            self.largest = int(self.pixel_counts.argmax())

    def __len__(self) -> int:
        return int(self.starts[-1])

    def lengths(self) -> list[int]:
        """Number of records of each source."""
        return [len(source) for source in self.sources]

    def __getitem__(self, index: int) -> DetectionRecord:
        """Decode one record.

        Raises:
            IndexError: if there is no such record.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number = int(np.searchsorted(self.starts, index % len(self), side="right")) - 1
        record = self.sources[number][int(index % len(self) - self.starts[number])]
        return record if record.set_name else replace(record, set_name=self.names[number])
