"""An annotated folder of images as records, one for each question, and the base of its data modules."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vr1.data.annotations import AnnotationTable
from vr1.data.coco_reader import read_coco
from vr1.data.datamodule import RecordDataModule
from vr1.data.image_checks import WRONG_SIZE, check_images, size_fault
from vr1.data.image_files import ImageFolder
from vr1.data.images import ImageError, open_image, read_header, rotate_boxes
from vr1.data.questions import Questions
from vr1.data.source import DataReport, RecordSource, decode_or_next
from vr1.data.splits import Portion, take_portion
from vr1.data.validation import BadRecords, FaultyRecordsError, Problems, check_bad_records
from vr1.errors import UserError
from vr1.types import Boxes, DetectionRecord

Reader = Callable[[Path], tuple[AnnotationTable, Problems, list[str]]]
"""Reads annotations: the table of the valid records, the problems of the others, notes on what was changed."""

_log = logging.getLogger(__name__)


class AnnotatedSource(RecordSource):
    """Records of one annotation file: COCO's json, or any other format with a reader of its own.

    The whole file is checked when the source is made: everything in the annotations, the presence of every image, and
    the size of ``header_checks`` images. Sizes of the others, and damaged pixels, show when a record is decoded: then
    ``bad_records="error"`` raises; ``"skip"`` logs a warning and returns the next good record, with the error in its
    ``replaces``. So a run survives, and an evaluation sees a record that it has already counted.

    Args:
        annotations: the file.
        images: the folder to which its file names are relative.
        portion: the part of the images to take; all of them where None. See `coco_splits`.
        questions: which questions to ask.
        bad_records: raise one error that lists all faulty records, or leave them out and report them once.
        seed: draws the negatives.
        header_checks: number of image headers to read before training, spread over the file.
        read: reads the annotations; None reads COCO's json.
        training_categories: returns the categories of the training questions, for evaluation questions; None takes
            those of the file.

    Attributes:
        categories: the categories that questions name.
        table: the images and objects that the questions are about.
        report: what was left out and what was changed.

    Raises:
        UserError: if a setting, the file or (with ``bad_records="error"``) a record in it is faulty, or no record is
            left.

    Example:
        >>> import json, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (40, 30)).save(f"{folder}/a.png")
        ...     document = {
        ...         "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 30}],
        ...         "categories": [{"id": 1, "name": "cat"}],
        ...         "annotations": [{"id": 1, "image_id": 7, "category_id": 1, "bbox": [1, 2, 10, 20]}],
        ...     }
        ...     _ = Path(folder, "train.json").write_text(json.dumps(document))
        ...     record = AnnotatedSource(Path(folder, "train.json"), Path(folder))[0]
        >>> record.boxes_xyxy.tolist(), record.labels, record.image_id
        ([[1.0, 2.0, 11.0, 22.0]], ('cat',), 7)
    """

    def __init__(
        self,
        annotations: Path | str,
        images: Path | str,
        portion: Portion | None = None,
        questions: Questions = Questions(),  # noqa: B008 - a frozen dataclass is safe to share
        *,
        bad_records: BadRecords = "error",
        seed: int = 0,
        header_checks: int = 1000,
        read: Reader | None = None,
        training_categories: Callable[[], Sequence[str]] | None = None,
    ) -> None:
        check_bad_records(bad_records)
        if header_checks < 0:
            raise UserError(f"header_checks={header_checks}: give a number of images, 0 for none")
        self._annotations, self._images, self._skip = Path(annotations), Path(images), bad_records == "skip"
        folder = ImageFolder(self._images)
        table, problems, notes = (read or partial(read_coco, images=folder))(self._annotations)
        table = check_images(table, folder, header_checks, problems, notes)
        if len(problems) and not self._skip:
            raise FaultyRecordsError(problems)
        training = training_categories() if training_categories and questions.categories is None else None
        table = questions.choose_categories(table, self._annotations, notes, training)
        if portion is not None:
            table, problems = take_portion(table, problems, portion, self._annotations)
        self.table = table = questions.choose_images(table, notes)
        self._questions = questions.of(table, seed, notes)
        self.categories = table.categories
        self.image_sizes = table.sizes[self._questions[:, 0]]
        if table.references:
            self.reference_sizes = [table.reference_sizes[row] for row in self._questions[:, 0].tolist()]
        self.object_counts = _object_counts(table, self._questions)
        self.report = self._make_report(problems, notes)

    def _make_report(self, problems: Problems, notes: list[str]) -> DataReport:
        table = self.table
        used = len(np.unique(self._questions[:, 0]))
        if used < len(table):
            notes.append(f"{len(table) - used} images without objects have no question")
        report = DataReport(
            records=len(self),
            images=used,
            objects=len(table.areas),
            problems=problems,
            notes=tuple(notes),
            rounded=tuple(dict.fromkeys(table.file_names[row] for row in table.image_rows[table.rounded])),
        )
        if not len(self):
            raise UserError(f"annotations={self._annotations}: no record is left to read.\n{report}")
        if len(problems) or notes:
            _log.warning("%s", report)
        return report

    def reports(self) -> list[DataReport]:
        """The report of this file."""
        return [self.report]

    def origin(self, index: int) -> str:
        """The annotation file, the number of the record, and its image."""
        return f"{self._annotations}[{index}]: {self.table.file_names[int(self._questions[index, 0])]}"

    def __len__(self) -> int:
        return len(self._questions)

    def __getitem__(self, index: int) -> DetectionRecord:
        """Decode one record.

        Raises:
            IndexError: if there is no such record.
            ImageError: if the image cannot be decoded or has another size than the annotations say, unless bad records
                are skipped and there is a good one.
        """
        return decode_or_next(self._decode, index, len(self), self._skip)

    def _decode(self, index: int) -> DetectionRecord:
        image_row, category_row = self._questions[index].tolist()
        table = self.table
        objects = table.objects_of(image_row)
        rows = np.arange(objects.start, objects.stop)
        categories = self.categories
        if category_row >= 0:
            rows = rows[table.category_rows[rows] == category_row]
            categories = (categories[category_row],)
        image, boxes = self._upright(image_row, table.boxes_xyxy[rows])
        return DetectionRecord(
            image=image,
            boxes_xyxy=boxes,
            labels=tuple(self.categories[row] for row in table.category_rows[rows]),
            categories=categories,
            image_id=table.image_ids[image_row],
            origin=self.origin(index),
            areas=table.areas[rows],
            crowd=table.crowd[rows],
            referring=table.referring,
            references=tuple(open_image(self._images / name) for name in self._references(image_row)),
            image_first=table.image_first,
        )

    def _references(self, image_row: int) -> tuple[str, ...]:
        return self.table.references[image_row] if self.table.references else ()

    def _upright(self, image_row: int, boxes: Boxes) -> tuple[Image.Image, Boxes]:
        path = self._images / self.table.file_names[image_row]
        image = open_image(path)
        width, height = self.table.sizes[image_row].tolist()
        if image.size == (width, height):
            return image, boxes.copy()
        header = read_header(path)
        if fault := size_fault(path, header, (width, height)):
            raise ImageError(f"{WRONG_SIZE}: {fault}; fix the annotations, or set bad_records: skip to leave it out")
        return image, rotate_boxes(boxes, header)


def used_categories(table: AnnotationTable) -> tuple[str, ...]:
    """The categories of which a table has an object, in its order."""
    return tuple(table.categories[row] for row in np.unique(table.category_rows).tolist())


def _object_counts(table: AnnotationTable, questions: NDArray[np.int64]) -> NDArray[np.int64]:
    """``[Q]`` number of boxes that answer each question, crowd regions left out."""
    images, categories = table.image_rows[~table.crowd], table.category_rows[~table.crowd]
    if not len(questions) or questions[0, 1] < 0:
        return np.bincount(images, minlength=len(table))[questions[:, 0]]
    pairs, counts = np.unique(images * len(table.categories) + categories, return_counts=True)
    question_pairs = questions[:, 0] * len(table.categories) + questions[:, 1]
    at = np.searchsorted(pairs, question_pairs).clip(max=max(len(pairs) - 1, 0))
    return np.where(pairs[at] == question_pairs, counts[at], 0) if len(pairs) else np.zeros(len(questions), np.int64)


class AnnotatedDataModule(RecordDataModule):
    """Base of the data modules that read an annotated folder: the settings of its questions and of faulty records.

    Args:
        task: name all categories in one prompt (``detection``), or one category in each (``grounding``).
        empty_images: keep images without objects, to be answered with an empty list, or leave them out.
        negatives: share of grounding questions for a category that is not in the image.
        categories: name these, in this order, instead of all that the annotations use.
        bad_records: refuse faulty records before training, or leave them out, counted and reported (``skip``).
        settings: loading and selection; see `RecordDataModule`.
    """

    def __init__(
        self,
        task: Literal["detection", "grounding"] = "detection",
        empty_images: Literal["keep", "skip"] = "keep",
        negatives: float = 0.0,
        categories: list[str] | None = None,
        bad_records: Literal["error", "skip"] = "error",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        check_bad_records(bad_records)
        self.bad_records: BadRecords = bad_records
        self._trained_on: dict[str, Sequence[str]] = {}
        self.questions = Questions(task=task, empty_images=empty_images, negatives=negatives, categories=categories)

    @property
    def skips_bad_records(self) -> bool:
        """Whether ``bad_records`` is ``skip``."""
        return self.bad_records == "skip"

    def report_bad_records(self) -> None:
        """Leave faulty records out and report them, as ``bad_records: skip`` does."""
        self.bad_records = "skip"

    def train_on(self, source: AnnotatedSource, name: str = "") -> AnnotatedSource:
        """Store the categories of the training questions.

        Args:
            source: the training records.
            name: the set that they belong to, of several.
        """
        self._trained_on[name] = source.categories
        return source

    def asked_in_training(self, annotations: Path, read: Reader, name: str = "") -> Callable[[], Sequence[str]]:
        """The categories of the training questions, for evaluation questions.

        Args:
            annotations: the training file; it is read where it was not trained on.
            read: reads it.
            name: the set that it belongs to, of several.
        """

        def categories() -> Sequence[str]:
            if name not in self._trained_on:
                try:
                    self._trained_on[name] = used_categories(read(annotations)[0])
                except UserError as error:
                    _log.warning("the categories are not those of the training, which cannot be read: %s", error)
                    self._trained_on[name] = ()
            return self._trained_on[name]

        return categories

    def open(
        self,
        annotations: Path,
        images: Path,
        portion: Portion | None = None,
        read: Reader | None = None,
        questions: Questions | None = None,
        training_categories: Callable[[], Sequence[str]] | None = None,
    ) -> AnnotatedSource:
        """One annotation file, with the settings of this data module.

        Args:
            annotations: the file.
            images: the folder to which its file names are relative.
            portion: the part of the images to take; all of them where None.
            read: reads the annotations; None reads COCO's json.
            questions: which questions to ask; None takes the settings.
            training_categories: returns the categories of the training questions; see `AnnotatedSource`.

        Raises:
            UserError: the file or a record in it is faulty, or no record is left.
        """
        return AnnotatedSource(
            annotations,
            images,
            portion,
            questions or self.questions,
            bad_records=self.bad_records,
            seed=self.seed,
            read=read,
            training_categories=training_categories,
        )
