"""Vision-R1-Data, the training set that the authors of Vision-R1 released, and any data set of the same columns."""

import json
import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from vr1.data.coco_report import CocoReport
from vr1.data.images import ImageError, open_image
from vr1.data.json_fields import is_box, is_side, is_text
from vr1.data.problems import Problems
from vr1.data.stand_in import decode_or_next
from vr1.data.table_rows import TableRows, box_fault
from vr1.data.worded import asked_for
from vr1.records import DetectionRecord

_COLUMNS = ("problem", "solution", "width", "height")
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
        missing = [column for column in ("image", *_COLUMNS) if column not in table.column_names]
        if missing:
            raise ValueError(
                f"{name}: has no column {', '.join(missing)}, only {', '.join(table.column_names)}; give a data set "
                f"with the columns image, {', '.join(_COLUMNS)}"
            )
        self._table, self._name, self._skip = table, name, bad_records == "skip"
        self._numbers: list[int] = []
        self._asked: list[tuple[str, ...]] = []
        problems, notes = self._read()
        if len(problems) and not self._skip:
            raise ValueError(f"{problems}\nMend the data, or set bad_records: skip to leave these out.")
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
        columns = self._table.select_columns(list(_COLUMNS)).with_format("arrow")[:].to_pylist()
        for number, row in enumerate(columns):
            try:
                asked, objects, size = _record(row)
            except _RecordError as fault:
                problems.add(fault.kind, f"record {number}{fault.detail}")
                continue
            self._numbers.append(number)
            self._asked.append(kept.setdefault(asked, asked))  # one copy of 80 names, not one a record
            rows.add_image(f"record {number}", size)
            for label, box in objects:
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
        image = _image(self._table[number]["image"], origin)
        size = tuple(self._objects.sizes[index].tolist())
        if image.size != size:
            raise ImageError(f"{origin}: the image is {image.size}, its record says {size}; leave the record out")
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
        )


class _RecordError(Exception):
    """A record that cannot be used: the kind of fault, and what shows it."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, f": {detail[:160]}" if detail else ""


def _record(row: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, list[float]]], tuple[int, int]]:
    """What a record asks for, its objects and its size."""
    if not (is_side(row["width"]) and is_side(row["height"])):
        raise _RecordError("record without a width and height above 0", f"{row['width']} x {row['height']}")
    size = int(row["width"]), int(row["height"])
    objects = _objects(row["solution"], size)
    labels = list(dict.fromkeys(label for label, _ in objects))
    asked = asked_for(row["problem"], labels) if is_text(row["problem"]) else None
    if asked is None:
        raise _RecordError("record whose question is worded in a way that is not known", repr(row["problem"]))
    if len(asked) == 1:
        # A referring expression may be labelled by its category; what is asked for is the expression.
        return asked, [(asked[0], box) for _, box in objects], size
    folded = {name.casefold() for name in asked}
    if strange := [label for label in labels if label.casefold() not in folded]:
        raise _RecordError("record with a label that its question does not name", strange[0])
    return asked, objects, size


def _objects(solution: Any, size: tuple[int, int]) -> list[tuple[str, list[float]]]:
    try:
        items = json.loads(solution) if isinstance(solution, str) else solution
    except (ValueError, RecursionError) as error:
        raise _RecordError("record whose solution is not JSON", str(error)) from error
    if not isinstance(items, list):
        raise _RecordError("record whose solution is no list", repr(items))
    objects = []
    for item in items:
        if not (isinstance(item, list) and len(item) == 2 and is_text(item[0]) and is_box(item[1])):
            raise _RecordError("record with an item that is not [label, [x1, y1, x2, y2]]", repr(item))
        if fault := box_fault(item[1], size):
            raise _RecordError(fault, f"{item!r:.80} on {size[0]} x {size[1]}")
        objects.append((" ".join(item[0].split()), [float(value) for value in item[1]]))
    return objects


def _image(stored: Any, origin: str) -> Image.Image:
    """An image as the library gives it undecoded: its bytes, or the path of its file."""
    if isinstance(stored, dict) and stored.get("bytes") is not None:
        return open_image(origin, data=stored["bytes"])
    path = stored.get("path") if isinstance(stored, dict) else stored
    if not isinstance(path, str | Path):
        raise ImageError(f"{origin}: holds no image; leave the record out")
    return open_image(path)
