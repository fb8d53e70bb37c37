"""Several data sets as one, and mixed into one training set by weight."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vr1.data.datamodule import InputSize, RecordDataModule, Source, Split
from vr1.data.refused import Refusal
from vr1.data.selection import SelectedSource
from vr1.data.source import DataReport, RecordSource
from vr1.errors import UserError
from vr1.types import DetectionRecord


class SetsSource(RecordSource):
    """Several sources one after the other; the ``set_name`` of every record says which one it is from.

    Args:
        sources: by name of the set; a record that has a ``set_name`` already keeps it.

    Raises:
        UserError: if there is no source.
    """

    def __init__(self, sources: dict[str, Any]) -> None:
        if not sources:
            raise UserError("data: no set is named; give at least one")
        self.names, self.sources = list(sources), list(sources.values())
        self.starts = np.cumsum([0, *map(len, self.sources)])
        known = [source for source in self.sources if isinstance(source, RecordSource)]
        object_counts = [source.object_counts for source in known if source.object_counts is not None]
        image_sizes = [source.image_sizes for source in known if source.image_sizes is not None]
        self.object_counts = np.concatenate(object_counts) if len(object_counts) == len(self.sources) else None
        self.image_sizes = np.concatenate(image_sizes) if len(image_sizes) == len(self.sources) else None
        if any(source.reference_sizes for source in known):
            self.reference_sizes = [
                sizes
                for source in self.sources
                for sizes in (source.reference_sizes if isinstance(source, RecordSource) else ()) or [()] * len(source)
            ]

    def reports(self) -> list[DataReport]:
        """The reports of all sources."""
        return [report for source in self.sources if isinstance(source, RecordSource) for report in source.reports()]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def origin(self, index: int) -> str:
        """What its source calls the record."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        source, row = self.sources[number], int(index - self.starts[number])
        return source.origin(row) if isinstance(source, RecordSource) else f"record {row} of {self.names[number]}"

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


class MixtureDataModule(RecordDataModule):
    """Training records of several data modules in given proportions; evaluation is on each of them as a set.

    Args:
        parts: the data modules by name. Their own batch sizes, workers and order are not used; their other settings,
            such as a selection, are.
        weights: how often records of a part come, in proportion to the others; 1 where not named.
        records: training records an epoch. None: as many as it takes for every record to come at least once.
        evaluate: the parts to validate and test on; None takes all.
        settings: loading and selection, which applies to the whole mixture, as a curriculum does; see
            `RecordDataModule`.
    """

    def __init__(
        self,
        parts: dict[str, RecordDataModule],
        weights: dict[str, float] | None = None,
        records: int | None = None,
        evaluate: list[str] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        for setting, names in (("weights", list(weights or {})), ("evaluate", evaluate or [])):
            if unknown := sorted(set(names) - set(parts)):
                raise UserError(f"data.{setting}: {', '.join(unknown)} is no part; the parts are {', '.join(parts)}")
        self.weights = {name: float((weights or {}).get(name, 1.0)) for name in parts}
        if not parts or not all(0 < weight < math.inf for weight in self.weights.values()):
            raise UserError(f"data.weights={self.weights}: needs at least one part, and weights above 0")
        if streams := [name for name, part in parts.items() if part.is_stream]:
            raise UserError(
                f"data.parts.{streams[0]}.streaming=true: a stream is read from front to back and cannot be mixed; set"
                " it to false"
            )
        if self.mirror and (names := [name for name, part in parts.items() if part.asks_for_expressions]):
            raise UserError(
                f"data.mirror: data.parts.{names[0]} asks for expressions, which may say left or right; set mirror in"
                " the other parts instead"
            )
        if records is not None and records < 1:
            raise UserError(f"data.records={records} must be at least 1")
        self.parts, self.records, self.evaluate = parts, records, evaluate or list(parts)

    def report_bad_records(self) -> None:
        """The same for all parts."""
        for part in self.parts.values():
            part.report_bad_records()

    def refuse_images(self, refusal: Refusal) -> None:
        """The same for all parts, each of which has its own setting of faulty records."""
        for part in self.parts.values():
            part.refuse_images(refusal)

    def take_input_sizes(self, input_size: InputSize) -> None:
        """The same for all parts."""
        for part in self.parts.values():
            part.take_input_sizes(input_size)

    def read(self, split: Split) -> Source:
        """The mixed training records, or the records of the parts to evaluate one after the other.

        Raises:
            UserError: a part has no such split, or its data are faulty.
        """
        names = list(self.parts) if split == "train" else self.evaluate
        source = SetsSource({name: self.parts[name].build(split) for name in names})
        if split != "train":
            return source
        rows = mixture_rows(source.lengths(), [self.weights[name] for name in names], self.records, self.seed)
        return SelectedSource(source, rows)


def mixture_rows(lengths: list[int], weights: list[float], records: int | None, seed: int) -> NDArray[np.int64]:
    """Rows of several concatenated sources, mixed in proportion to their weights and in random order.

    A source that gives more rows than it has repeats all of them equally often, except for a random remainder.

    Args:
        lengths: number of records of each source.
        weights: proportion of each.
        records: how many rows in all; None: as many as it takes for each record to come at least once.
        seed: draws the remainders and the order.

    Returns:
        ``[records]`` int64.

    Example:
        >>> rows = mixture_rows([100, 10], [1.0, 1.0], records=None, seed=0)
        >>> len(rows), int((rows < 100).sum()), np.bincount(rows)[100:].tolist()
        (200, 100, [10, 10, 10, 10, 10, 10, 10, 10, 10, 10])
    """
    shares = np.array(weights) / sum(weights)
    total = records or math.ceil(max(np.array(lengths) / shares) - 1e-9)
    # The remainders of rounding go to the parts that lost most by it.
    counts = np.floor(total * shares + 1e-9).astype(np.int64)
    lost = total * shares - counts
    counts[np.argsort(-lost, kind="stable")[: total - counts.sum()]] += 1
    rng = np.random.default_rng(seed)
    starts = np.cumsum([0, *lengths])[:-1]
    chosen = []
    for start, length, count in zip(starts, lengths, counts.tolist(), strict=True):
        repeated = np.tile(np.arange(length), count // length)
        rest = rng.permutation(length)[: count % length]
        chosen.append(start + np.concatenate([repeated, rest]))
    return rng.permutation(np.concatenate(chosen)).astype(np.int64)
