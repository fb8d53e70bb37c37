"""Vision-R1-Data as a stream: nothing of it is kept on disk, and a few rows of it in memory."""

import logging
import os
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from torch.utils.data import Dataset

from vr1.data.annotations import TableRows
from vr1.data.image_checks import decode_or_next
from vr1.data.vision_r1_rows import COLUMNS, ParsedRow, RowError, check_columns, decode_image, parse_row
from vr1.errors import UserError
from vr1.types import DetectionRecord

_log = logging.getLogger(__name__)
_ROWS_AT_A_TIME = 16


class VisionR1Stream(Dataset[DetectionRecord]):
    """Records of an iterable data set by their place in it, for readers that ask for one after the other.

    Asking forward reads on; asking for a place that was passed, and is not among the last ``kept`` rows, begins again.
    So it can stand wherever a source with random access can, as long as it is not shuffled: training goes on in the
    middle of an epoch after passing over what came before. Each worker process reads the whole stream and decodes the
    images of its own batches only.

    What `VisionR1Source` finds out about all records in advance shows here when a record is read: faults, and how many
    are left by the limits on the number of objects. Beyond the last record the stream begins anew.

    Args:
        table: a ``datasets.IterableDataset`` with the columns of Vision-R1-Data; see `load_table`.
        name: what the data set is called, for messages.
        records: how many records an epoch has.
        bad_records: raise at a faulty record, or pass over it with a warning (``skip``).
        min_objects: pass over records with fewer objects.
        max_objects: pass over records with more objects; None for no limit.
        kept: rows to hold, undecoded, for batches that come again.

    Raises:
        UserError: if a column is missing, or (while reading) at a faulty record, or when none is left.
    """

    def __init__(
        self,
        table: Any,
        name: str,
        records: int,
        bad_records: Literal["error", "skip"] = "error",
        min_objects: int = 0,
        max_objects: int | None = None,
        kept: int = 512,
    ) -> None:
        if table.column_names is not None:
            check_columns(table.column_names, name)
        self._table, self._name, self._records, self._skip = table, name, records, bad_records == "skip"
        self._least, self._most, self._size = min_objects, np.inf if max_objects is None else max_objects, kept
        self._begin()

    def __len__(self) -> int:
        return self._records

    def __getitem__(self, index: int) -> DetectionRecord:
        """Read on to a record and decode it.

        Raises:
            IndexError: if there is no such record.
            UserError: at a faulty record, or if none is left.
            ImageError: if the image cannot be decoded or has another size than its row says, unless bad records are
                skipped and there is a good one.
        """
        return decode_or_next(self._decode, index, len(self), self._skip)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is open: another process begins by itself."""
        return self.__dict__ | {"_rows": None, "_process": 0, "_kept": OrderedDict()}

    def _begin(self) -> None:
        # A process that was forked shares open files, and their positions, with its parent.
        self._process, self._reached, self._rows = os.getpid(), 0, self._usable()
        self._kept: OrderedDict[int, tuple[int, Any, ParsedRow | UserError]] = OrderedDict()

    def _row(self, index: int) -> tuple[int, Any, ParsedRow | UserError]:
        if self._process != os.getpid() or (index < self._reached and index not in self._kept):
            self._begin()
        while self._reached <= index:
            self._kept[self._reached] = next(self._rows)
            self._reached += 1
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return self._kept[index]

    def _usable(self) -> Iterator[tuple[int, Any, ParsedRow | UserError]]:
        """Number, stored image and content of each row that can be used, over and over.

        What is wrong with a row stands in its place, where none may be passed over: raised here, it would end the
        stream for a reader that goes on, as `vr1.commands.check` does.
        """
        while True:
            used = False
            for number, row in enumerate(self._raw()):
                try:
                    parsed = parse_row(row)
                except RowError as fault:
                    where = f"{self._name}[{number}]: {fault.kind}{fault.detail}"
                    if self._skip:
                        _log.warning("%s; passed over (bad_records: skip)", where)
                        continue
                    used = True
                    error = UserError(f"{where}; mend the data, or set bad_records: skip to pass over it")
                    yield number, None, error
                    continue
                if self._least <= len(parsed.objects) <= self._most:
                    used = True
                    yield number, row["image"], parsed
            if not used:
                raise UserError(f"{self._name}: no record of the stream can be used; widen the selection")

    def _raw(self) -> Iterator[dict[str, Any]]:
        # In batches, since single rows are shared out among the workers of a loader, which share out places already.
        for batch in self._table.iter(batch_size=_ROWS_AT_A_TIME):
            check_columns(batch, self._name)
            for values in zip(*(batch[column] for column in ("image", *COLUMNS)), strict=True):
                yield dict(zip(("image", *COLUMNS), values, strict=True))

    def _decode(self, index: int) -> DetectionRecord:
        number, stored, parsed = self._row(index)
        if isinstance(parsed, ValueError):
            raise parsed
        origin = f"{self._name}[{number}]"
        image = decode_image(stored, origin, parsed.size)
        rows = TableRows()
        rows.add_image(origin, parsed.size)
        for label, box in parsed.objects:
            rows.add_object(label, box)
        objects = rows.table()
        return DetectionRecord(
            image=image,
            boxes_xyxy=objects.boxes_xyxy,
            labels=tuple(objects.categories[row] for row in objects.category_rows),
            categories=parsed.asked,
            image_id=number + 1,
            origin=origin,
            areas=objects.areas,
            crowd=objects.crowd,
            referring=parsed.referring,
        )
