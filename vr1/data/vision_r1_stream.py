"""Vision-R1-Data as a stream: none of it is stored on disk, and only a few rows are held in memory."""

import logging
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from vr1.data.refused import REFUSED, Refusal
from vr1.data.source import RecordSource, decode_or_next
from vr1.data.validation import BadRecords, check_bad_records
from vr1.data.vision_r1_rows import COLUMNS, ParsedRow, RowError, check_columns, decode_row, parse_row
from vr1.errors import UserError
from vr1.types import DetectionRecord, Replacement

_log = logging.getLogger(__name__)
_ROWS_AT_A_TIME = 16


class _StreamRow(NamedTuple):
    """One row of the stream, its image not decoded.

    Attributes:
        number: its number in the data set.
        image: what the column ``image`` holds.
        parsed: its content, or the error to raise when it is read.
        replaces: faulty rows directly before it, which are skipped.
    """

    number: int
    image: Any
    parsed: ParsedRow | UserError
    replaces: tuple[Replacement, ...] = ()


class VisionR1Stream(RecordSource):
    """Records of an iterable data set by their position in it, for readers that go from front to back.

    A higher index reads on; a lower one that is not among the last ``buffer_size`` rows restarts the stream. So it can
    be used wherever a source with random access can, as long as it is not shuffled: training resumes in the middle of
    an epoch after reading past what came before. Each worker process reads the full stream and decodes the images of
    its own batches only.

    What `VisionR1Source` finds out about all records in advance shows here when a record is read: faults, and how many
    records the limits on the number of objects leave. Beyond the last record the stream restarts.

    Args:
        table: a ``datasets.IterableDataset`` with the columns of Vision-R1-Data; see `load_table`.
        name: what the data set is called, for messages.
        records: how many records an epoch has.
        bad_records: raise at a faulty record, or skip it with a warning (``skip``).
        min_objects: skip records with fewer objects.
        max_objects: skip records with more objects; None for no limit.
        buffer_size: rows to hold, undecoded, for batches that are repeated.
        refusal: why the model takes no images of a size; such a row is faulty.

    Raises:
        UserError: if a column is missing, or (while reading) at a faulty record, or when none is left.
    """

    def __init__(
        self,
        table: Any,
        name: str,
        records: int,
        bad_records: BadRecords = "error",
        min_objects: int = 0,
        max_objects: int | None = None,
        buffer_size: int = 512,
        refusal: Refusal | None = None,
    ) -> None:
        check_bad_records(bad_records)
        if table.column_names is not None:
            check_columns(table.column_names, name)
        self._table, self._name, self._records, self._skip = table, name, records, bad_records == "skip"
        self._least, self._most = min_objects, np.inf if max_objects is None else max_objects
        self._buffer_size, self._refusal = buffer_size, refusal
        self._restart()

    def __len__(self) -> int:
        return self._records

    def __getitem__(self, index: int) -> DetectionRecord:
        """Read up to a record and decode it.

        Raises:
            IndexError: if there is no such record.
            UserError: at a faulty record, or if none is left.
            ImageError: if the image cannot be decoded or has another size than its row says, unless bad records are
                skipped and there is a good one.
        """
        return decode_or_next(self._decode, index, len(self), self._skip)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is open: another process starts its own reader."""
        return self.__dict__ | {"_rows": None, "_process": 0, "_buffer": OrderedDict()}

    def _restart(self) -> None:
        # A process that was forked shares open files, and their positions, with its parent.
        self._process, self._next_index, self._rows = os.getpid(), 0, self._usable()
        self._buffer: OrderedDict[int, _StreamRow] = OrderedDict()

    def _row(self, index: int) -> _StreamRow:
        if self._process != os.getpid() or (index < self._next_index and index not in self._buffer):
            self._restart()
        while self._next_index <= index:
            self._buffer[self._next_index] = next(self._rows)
            self._next_index += 1
            if len(self._buffer) > self._buffer_size:
                self._buffer.popitem(last=False)
        return self._buffer[index]

    def _usable(self) -> Iterator[_StreamRow]:
        """Each row that can be used, over and over.

        Where faulty rows are errors, such a row carries its error: raised here, it would end the stream for a reader
        that continues, as `vr1.commands.check` does.
        """
        skipped: list[tuple[int, str]] = []
        while True:
            used = False
            for number, row in enumerate(self._raw()):
                try:
                    parsed = parse_row(row)
                    if self._refusal is not None and (reason := self._refusal(parsed.size)) is not None:
                        raise RowError(REFUSED, f"{parsed.size[0]} x {parsed.size[1]}: {reason}")
                except RowError as fault:
                    where = f"{self._name}[{number}]: {fault.kind}{fault.detail}"
                    if self._skip:
                        skipped.append((number, where))
                        continue
                    used = True
                    error = UserError(f"{where}; fix the data, or set bad_records: skip to leave it out")
                    yield _StreamRow(number, None, error)
                    continue
                if self._least <= len(parsed.objects) <= self._most:
                    used = True
                    replaces = tuple(Replacement(index=bad, error=error, used=number) for bad, error in skipped)
                    for replacement in replaces:
                        _log.warning("%s", replacement)
                    skipped.clear()
                    yield _StreamRow(number, row["image"], parsed, replaces)
            if not used:
                raise UserError(
                    f"{self._name}: no record of the stream can be used"
                    + (f", such as {skipped[0][1]}" if skipped else "; widen data.selection")
                )

    def _raw(self) -> Iterator[dict[str, Any]]:
        # In batches, since single rows would be shared among the workers of a loader, which share indices already.
        for batch in self._table.iter(batch_size=_ROWS_AT_A_TIME):
            check_columns(batch, self._name)
            for values in zip(*(batch[column] for column in ("image", *COLUMNS)), strict=True):
                yield dict(zip(("image", *COLUMNS), values, strict=True))

    def _decode(self, index: int) -> DetectionRecord:
        number, image, parsed, replaces = self._row(index)
        if isinstance(parsed, UserError):
            raise parsed
        return replace(decode_row(image, parsed, number, self._name), replaces=replaces)
