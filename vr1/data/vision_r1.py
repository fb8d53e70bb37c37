"""Vision-R1-Data, the training set that the authors of Vision-R1 released, and any data set of the same columns."""

import logging
from typing import Any, Literal

import numpy as np

from vr1.data.annotations import TableBuilder
from vr1.data.datamodule import MissingSplitError, RecordDataModule, Source, Split
from vr1.data.question_text import ParsedQuestion
from vr1.data.selection import SelectedSource, Selection
from vr1.data.source import DataReport, RecordSource, decode_or_next
from vr1.data.validation import BadRecords, FaultyRecordsError, Problems, check_bad_records
from vr1.data.vision_r1_rows import COLUMNS, ParsedRow, RowError, check_columns, decode_row, load_table, parse_row
from vr1.data.vision_r1_stream import VisionR1Stream
from vr1.errors import UserError
from vr1.types import DetectionRecord

_log = logging.getLogger(__name__)


class VisionR1Source(RecordSource):
    """Records of a data set with the columns ``image``, ``problem``, ``solution``, ``width`` and ``height``.

    ``problem`` is a question in Griffon's template, of which only the categories are used: the model's family has its
    own template. ``solution`` is a JSON list of ``[label, [x1, y1, x2, y2]]`` in pixels of the image. Everything but
    the images is checked when the source is made; those are decoded one by one from the files on disk, which are never
    read into memory in full.

    Args:
        table: a data set of the ``datasets`` library; see `load_table`.
        name: what the data set is called, for messages.
        bad_records: raise one error that lists all faulty records, or leave them out and report them once.

    Attributes:
        report: what was left out and what was changed.

    Raises:
        UserError: if a column is missing, a record is faulty (with ``bad_records="error"``), or none is left.

    Source: Vision-R1, arXiv 2503.18013, section 4.1; hub: JefferyZhan/Vision-R1-Data.
    """

    def __init__(self, table: Any, name: str, bad_records: BadRecords = "error") -> None:
        check_bad_records(bad_records)
        check_columns(table.column_names, name)
        self._table, self._name, self._skip = table, name, bad_records == "skip"
        self._numbers: list[int] = []
        self._questions: list[ParsedQuestion] = []
        problems, notes = self._read()
        if len(problems) and not self._skip:
            raise FaultyRecordsError(problems)
        objects = self._objects
        self.object_counts, self.image_sizes = objects.objects_per_image(), objects.sizes
        self.report = DataReport(
            records=len(self),
            images=len(self),
            objects=len(objects.areas),
            problems=problems,
            notes=notes,
            rounded=tuple(dict.fromkeys(objects.file_names[row] for row in objects.image_rows[objects.rounded])),
        )
        if not len(self):
            raise UserError(f"{name}: no record is left to read.\n{self.report}")
        if len(problems) or notes:
            _log.warning("%s", self.report)

    def reports(self) -> list[DataReport]:
        """The report of this data set."""
        return [self.report]

    def _read(self) -> tuple[Problems, tuple[str, ...]]:
        """Check all of every record except its image; the problems, and notes on what was changed."""
        problems, builder = Problems(self._name), TableBuilder()
        unique: dict[ParsedQuestion, ParsedQuestion] = {}
        columns = self._table.select_columns(list(COLUMNS)).with_format("arrow")[:].to_pylist()
        for number, row in enumerate(columns):
            try:
                parsed = parse_row(row)
            except RowError as fault:
                problems.add(fault.kind, f"record {number}{fault.detail}")
                continue
            self._numbers.append(number)
            # One copy of 80 names, not one for each record.
            self._questions.append(unique.setdefault(parsed.question, parsed.question))
            builder.add_image(f"record {number}", parsed.size)
            for label, box in parsed.objects:
                builder.add_object(label, box)
        self._objects = builder.table()
        return problems, tuple(builder.notes())

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
        number, table = self._numbers[index], self._objects
        width, height = table.sizes[index].tolist()
        rows = table.objects_of(index)
        labels = (table.categories[category] for category in table.category_rows[rows])
        objects = list(zip(labels, table.boxes_xyxy[rows].tolist(), strict=True))
        parsed = ParsedRow(self._questions[index], objects, (width, height))
        return decode_row(self._table[number]["image"], parsed, number, self._name)


# Rows that a shuffled stream draws from; their images are not decoded.
_SHUFFLE_BUFFER = 1000


class VisionR1DataModule(RecordDataModule):
    """The training data that the authors of Vision-R1 released, or any data set with the same columns.

    It needs the ``datasets`` library: ``pip install -e ".[datasets]"``.

    Args:
        path: name on the hub, or a local folder or file: parquet, arrow, or what ``save_to_disk`` wrote.
        split: the split of the data set to read.
        val_records: records held out of training, to validate and test on; drawn by the seed.
        bad_records: refuse faulty records before training, or leave them out, counted and reported (``skip``).
        selection: which training records to take, and in which order; the released code takes 1 to 30 objects.
        streaming: read the data set as a stream, for one that is larger than the disk; see `VisionR1Stream`. The order
            is then that of the stream, shuffled within a buffer where ``shuffle`` is set, the same in every epoch.
        records: how many training records an epoch of a stream has; None takes the number that the data set states.
        settings: loading; see `RecordDataModule`.
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
        **settings: Any,
    ) -> None:
        super().__init__(selection=selection, **settings)
        check_bad_records(bad_records)
        if val_records < 0:
            raise UserError(f"data.val_records={val_records} must not be negative")
        self.path, self.split, self.val_records = path, split, val_records
        self.bad_records: BadRecords = bad_records
        self.streaming, self.records, self._shuffle_stream = streaming, records, self.shuffle
        if streaming:
            self._check_stream()
            # Indices of a stream have to be read in order; its own buffer shuffles it.
            self.shuffle = False
        self._source: VisionR1Source | None = None

    def _check_stream(self) -> None:
        if self.selection.curriculum or self.selection.hard_share is not None:
            raise UserError(
                f"data.selection={self.selection}: a stream does not know how many objects later records have; leave"
                " curriculum and hard_share out, or set streaming: false"
            )
        if self.mirror:
            raise UserError("data.mirror: a stream is read in its own order; leave it out, or set streaming: false")
        if self.cache_records:
            raise UserError(
                f"data.cache_records={self.cache_records}: a stream is read from front to back every time; set it to 0,"
                " or streaming: false"
            )

    @property
    def is_stream(self) -> bool:
        """Whether ``streaming`` is set."""
        return self.streaming

    @property
    def skips_bad_records(self) -> bool:
        """Whether ``bad_records`` is ``skip``."""
        return self.bad_records == "skip"

    def report_bad_records(self) -> None:
        """Leave faulty records out and report them; a stream raises when it reads one, and then continues."""
        self.bad_records, self._source = "error" if self.streaming else "skip", None

    def build(self, split: Split) -> Source:
        """The records of one split after selection; a stream selects while it reads.

        Raises:
            MissingSplitError: nothing is held out, or everything.
            UserError: the data set cannot be read or is faulty.
        """
        return self._stream(split) if self.streaming else super().build(split)

    def read(self, split: Split) -> Source:
        """The training records, or those held out.

        Raises:
            MissingSplitError: nothing is held out, or everything.
            UserError: the data set cannot be read or is faulty.
        """
        if self._source is None:
            self._source = VisionR1Source(load_table(self.path, self.split), self.path, self.bad_records)
        source = self._source
        order = np.random.default_rng(self.seed).permutation(len(source))
        rows = order[: self.val_records] if split != "train" else order[self.val_records :]
        if not len(rows):
            raise MissingSplitError(
                f"{self.path}: val_records={self.val_records} of {len(source)} records leaves none for {split};"
                " change data.val_records"
            )
        return SelectedSource(source, np.sort(rows))

    def _stream(self, split: Split) -> Source:
        table = load_table(self.path, self.split, streaming=True)
        if split != "train":
            held_out = table.take(self.val_records)
            return VisionR1Stream(held_out, self.path, self.val_records, self.bad_records, refusal=self.refusal)
        known = (table.info.splits or {}).get(self.split)
        records = self.records or (known.num_examples - self.val_records if known is not None else 0)
        if records < 1:
            raise UserError(
                f"{self.path}: the data set does not state how many records it has; set data.records to the number of"
                " training records an epoch"
            )
        table = table.skip(self.val_records)
        if self._shuffle_stream:
            table = table.shuffle(seed=self.seed, buffer_size=_SHUFFLE_BUFFER)
        return VisionR1Stream(
            table,
            self.path,
            records,
            self.bad_records,
            min_objects=self.selection.min_objects,
            max_objects=self.selection.max_objects,
            refusal=self.refusal,
        )
