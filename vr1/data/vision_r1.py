"""Vision-R1-Data, the training set that the authors of Vision-R1 released, and any data set of the same columns."""

import logging
from typing import Any, Literal

import numpy as np
from torch.utils.data import Dataset

from vr1.data.coco_report import CocoReport
from vr1.data.problems import FaultyRecordsError, Problems
from vr1.data.stand_in import decode_or_next
from vr1.data.table_rows import TableRows
from vr1.data.vision_r1_row import COLUMNS, RowError, check_columns, decode_image, parse_row
from vr1.records import DetectionRecord

_log = logging.getLogger(__name__)


class VisionR1Source(Dataset[DetectionRecord]):
    """Records of a data set with the columns ``image``, ``problem``, ``solution``, ``width`` and ``height``.

    ``problem`` is a question in Griffon's words, of which only what it asks for is kept: the model's family words its
    own. ``solution`` is a JSON list of ``[label, [x1, y1, x2, y2]]`` in pixels of the image. Everything but the images
    is checked when the source is made; those are decoded one by one from the files on disk, which are never read into
    memory as a whole.

    Args:
        table: a data set of the ``datasets`` library; see `load_table`.
        name: what the data set is called, for messages.
        bad_records: raise one error that lists all faulty records, or leave them out and report them once.

    Attributes:
        object_counts: ``[R]`` int64 boxes of each record.
        pixel_counts: ``[R]`` int64 pixels of each record's image.
        largest: index of a record with the most pixels.
        report: what was left out and what was put right.

    Raises:
        ValueError: if a column is missing, a record is faulty (with ``bad_records="error"``), or none is left.

    Source: Vision-R1, arXiv 2503.18013, section 4.1; hub: JefferyZhan/Vision-R1-Data.
    """

    def __init__(self, table: Any, name: str, bad_records: Literal["error", "skip"] = "error") -> None:
        if bad_records not in ("error", "skip"):
            raise ValueError(f"bad_records={bad_records!r}: choose error or skip")
        check_columns(table.column_names, name)
        self._table, self._name, self._skip = table, name, bad_records == "skip"
        self._numbers: list[int] = []
        self._asked: list[tuple[str, ...]] = []
        self._referring: list[bool] = []
        problems, notes = self._read()
        if len(problems) and not self._skip:
            raise FaultyRecordsError(problems)
        self.object_counts = self._objects.objects_per_image()
        self.pixel_counts = self._objects.sizes.prod(1)
        self.report = CocoReport(
            records=len(self), images=len(self), objects=len(self._objects.areas), problems=problems, notes=notes
        )
        if not len(self):
            raise ValueError(f"{name}: no record is left to read.\n{self.report}")
        self.largest = int(self.pixel_counts.argmax())
        if len(problems) or notes:
            _log.warning("%s", self.report)

    def _read(self) -> tuple[Problems, tuple[str, ...]]:
        """Check every record but for its image; the problems, and notes on what was put right."""
        problems, rows = Problems(self._name), TableRows()
        kept: dict[tuple[str, ...], tuple[str, ...]] = {}
        columns = self._table.select_columns(list(COLUMNS)).with_format("arrow")[:].to_pylist()
        for number, row in enumerate(columns):
            try:
                parsed = parse_row(row)
            except RowError as fault:
                problems.add(fault.kind, f"record {number}{fault.detail}")
                continue
            self._numbers.append(number)
            self._asked.append(kept.setdefault(parsed.asked, parsed.asked))  # one copy of 80 names, not one a record
            self._referring.append(parsed.referring)
            rows.add_image(f"record {number}", parsed.size)
            for label, box in parsed.objects:
                rows.add_object(label, box)
        self._objects = rows.table()
        return problems, tuple(rows.notes())

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> DetectionRecord:
        """Decode one record.

        Raises:
            IndexError: if there is no such record.
            ImageError: if the image cannot be decoded or has another size than its record says, unless bad records are
                skipped and there is a good one.
        """
        return decode_or_next(self._decode, index, len(self), self._skip)

    def _decode(self, index: int) -> DetectionRecord:
        number = self._numbers[index]
        origin = f"{self._name}[{number}]"
        width, height = self._objects.sizes[index].tolist()
        image = decode_image(self._table[number]["image"], origin, (width, height))
        rows = self._objects.objects_of(index)
        boxes = self._objects.boxes_xyxy[rows].copy()
        return DetectionRecord(
            image=image,
            boxes_xyxy=boxes,
            labels=tuple(self._objects.categories[row] for row in self._objects.category_rows[rows]),
            categories=self._asked[index],
            image_id=number + 1,
            origin=origin,
            areas=self._objects.areas[rows].copy(),
            crowd=np.zeros(len(boxes), dtype=bool),
            referring=self._referring[index],
        )
