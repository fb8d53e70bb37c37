"""Vision-R1-Data, the training set that the authors of Vision-R1 released, and any data set of the same columns."""

import logging
from typing import Any, Literal

import numpy as np
from torch.utils.data import Dataset

from vr1.data.annotations import TableRows
from vr1.data.datamodule import MissingSplitError, RecordDataModule, Source, Split
from vr1.data.dataset import CocoReport
from vr1.data.image_checks import decode_or_next
from vr1.data.selection import SelectedSource, Selection, select
from vr1.data.validation import FaultyRecordsError, Problems
from vr1.data.vision_r1_rows import COLUMNS, RowError, check_columns, decode_image, load_table, parse_row
from vr1.data.vision_r1_stream import VisionR1Stream
from vr1.errors import UserError
from vr1.types import DetectionRecord

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
        UserError: if a column is missing, a record is faulty (with ``bad_records="error"``), or none is left.

    Source: Vision-R1, arXiv 2503.18013, section 4.1; hub: JefferyZhan/Vision-R1-Data.
    """

    def __init__(self, table: Any, name: str, bad_records: Literal["error", "skip"] = "error") -> None:
        if bad_records not in ("error", "skip"):
            raise UserError(f"bad_records={bad_records!r}: choose error or skip")
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
            raise UserError(f"{name}: no record is left to read.\n{self.report}")
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


# Rows of a stream that are held to be drawn from, with their images undecoded.
_BUFFER = 1000


class VisionR1DataModule(RecordDataModule):
    """The training data that the authors of Vision-R1 released, or any data set with the same columns.

    It needs the ``datasets`` library: ``pip install 'vr1[datasets]'``.

    Args:
        path: name on the hub, or a local folder or file: parquet, arrow, or what ``save_to_disk`` wrote.
        split: the split of the data set to read.
        val_records: records kept back from training, to validate and test on; drawn by the seed.
        bad_records: refuse faulty records before training, or leave them out, counted and reported (``skip``).
        selection: which training records, in which order; the released code takes 1 to 30 objects.
        streaming: read the data set as a stream, for one that is larger than the disk; see `VisionR1Stream`. The order
            is then that of the stream, mixed within a buffer where ``shuffle`` is set, the same in every epoch.
        records: how many training records an epoch of a stream has; None takes what the data set says of itself.
        loading: batch sizes, workers, order and seed; see `RecordDataModule`.
    """

    def __init__(
        self,
        path: str = "JefferyZhan/Vision-R1-Data",
        split: str = "train",
        val_records: int = 200,
        bad_records: Literal["error", "skip"] = "error",
        selection: Selection = Selection(min_objects=1, max_objects=30),  # noqa: B008 - frozen, so safe to share
        streaming: bool = False,
        records: int | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        if val_records < 0:
            raise UserError(f"data: val_records={val_records} must not be negative")
        self.path, self.split, self.val_records = path, split, val_records
        self.bad_records, self.selection = bad_records, selection
        self.shuffle = self.shuffle and not selection.curriculum
        self.streaming, self.records, self._mixed = streaming, records, self.shuffle
        if streaming:
            if selection.curriculum or selection.hard_share is not None:
                raise UserError(
                    f"data.selection={selection}: a stream does not know how many objects later records have; leave"
                    " curriculum and hard_share out, or set streaming: false"
                )
            if self.keep:
                raise UserError(
                    f"data.keep={self.keep}: a stream is read from front to back every time; set it to 0, or streaming:"
                    " false"
                )
            # Places of a stream are asked for in order; what mixes it is its own buffer.
            self.shuffle = False
        self._source: VisionR1Source | None = None

    def build(self, split: Split) -> Source:
        """The training records, or those kept back.

        Raises:
            MissingSplitError: nothing is kept back, or all of it.
            UserError: the data set cannot be read or is faulty.
        """
        if self.streaming:
            return self._stream(split)
        if self._source is None:
            self._source = VisionR1Source(load_table(self.path, self.split), self.path, self.bad_records)  # type: ignore[arg-type]
        source = self._source
        order = np.random.default_rng(self.seed).permutation(len(source))
        rows = order[: self.val_records] if split != "train" else order[self.val_records :]
        if not len(rows):
            raise MissingSplitError(
                f"{self.path}: val_records={self.val_records} of {len(source)} records leaves none for {split};"
                " change it"
            )
        return select(SelectedSource(source, np.sort(rows)), self.selection, split, self.seed)

    def _stream(self, split: Split) -> Source:
        table = load_table(self.path, self.split, streaming=True)
        if split != "train":
            return VisionR1Stream(table.take(self.val_records), self.path, self.val_records, self.bad_records)  # type: ignore[arg-type]
        known = (table.info.splits or {}).get(self.split)
        records = self.records or (known.num_examples - self.val_records if known is not None else 0)
        if records < 1:
            raise UserError(
                f"{self.path}: the data set does not say how many records it has; set data.records to the number of"
                " training records an epoch"
            )
        table = table.skip(self.val_records)
        if self._mixed:
            table = table.shuffle(seed=self.seed, buffer_size=_BUFFER)
        limits = {"min_objects": self.selection.min_objects, "max_objects": self.selection.max_objects}
        return VisionR1Stream(table, self.path, records, self.bad_records, **limits)  # type: ignore[arg-type]
