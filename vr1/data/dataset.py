"""An annotated folder of images as records, one a question: COCO's json, and whatever is read into the same table."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from vr1.data.annotations import CocoTable
from vr1.data.coco_layout import CocoSplit, Portion, split_files
from vr1.data.coco_reader import read_coco
from vr1.data.image_checks import WRONG_SIZE, check_images, decode_or_next, size_fault
from vr1.data.images import ImageError, open_image, read_header, turn_boxes
from vr1.data.questions import grounding_questions
from vr1.data.selection import choose_categories, take_portion, without_empty
from vr1.data.validation import FaultyRecordsError, Problems
from vr1.errors import UserError
from vr1.types import Boxes, DetectionRecord


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CocoReport:
    """What was read, what was left out and what was put right.

    Attributes:
        records: number of questions.
        images: number of images that they are about.
        objects: number of objects on those images, crowd regions included.
        problems: faulty records, by kind; all of them are left out.
        notes: what else was left out, merged, cut or renumbered.
    """

    records: int
    images: int
    objects: int
    problems: Problems
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """The report as a few lines of text."""
        lines = [f"{self.problems.source}: {self.records} records on {self.images} images with {self.objects} objects"]
        lines.extend(f"  note: {note}" for note in self.notes)
        if len(self.problems):
            lines.append(f"left out of {self.problems}")
        return "\n".join(lines)


__all__ = ["CocoReport", "CocoSource", "CocoSplit", "split_files"]

Reader = Callable[[Path], tuple[CocoTable, Problems, list[str]]]
"""Reads annotations: the table of the sound records, the problems of the others, notes on what was put right."""

_log = logging.getLogger(__name__)


class CocoSource(Dataset[DetectionRecord]):
    """Records of one COCO annotation file.

    For ``detection`` there is one record an image, and it asks for every category that the file uses, in the order of
    the file. For ``grounding`` there is one record for each category on each image, asking for that category alone, and
    ``negatives`` adds questions for categories that are not there.

    The file is checked as a whole when the source is made: everything in the json, the presence of every image, and
    the size of ``header_checks`` images. Sizes of the others, and damaged pixels, show when a record is decoded: then
    ``bad_records="error"`` raises, and ``"skip"`` logs a warning and gives the next good record in its place, so that a
    run survives and an evaluation sees a record that it has already counted.

    Args:
        annotations: the json file.
        images: the folder to which its file names are relative.
        portion: the part of the images to take; all of them where None. See `split_files`.
        task: which questions to ask.
        bad_records: raise one error that lists all faulty records, or leave them out and report them once.
        empty_images: keep images without objects (to be answered with an empty list) or leave them out.
        negatives: share of grounding questions whose right answer is an empty list.
        seed: draws the negatives.
        header_checks: number of image headers to read before training, spread over the file.
        categories: the categories to ask for, in this order, instead of all that the file uses. Objects of other
            categories do not count then.
        read: reads the annotations; another format than COCO's json has a reader of its own.
        referring: the categories are expressions, each for one object; needs ``grounding``.

    Attributes:
        categories: what is asked for.
        largest: index of a record with the most pixels.
        object_counts: ``[R]`` int64 boxes that answer each record's question, crowd regions left out.
        pixel_counts: ``[R]`` int64 pixels of each record's image.
        report: what was left out and what was put right.

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
        ...     record = CocoSource(Path(folder, "train.json"), Path(folder))[0]
        >>> record.boxes_xyxy.tolist(), record.labels, record.image_id
        ([[1.0, 2.0, 11.0, 22.0]], ('cat',), 7)
    """

    def __init__(
        self,
        annotations: Path | str,
        images: Path | str,
        portion: Portion | None = None,
        *,
        task: Literal["detection", "grounding"] = "detection",
        bad_records: Literal["error", "skip"] = "error",
        empty_images: Literal["keep", "skip"] = "keep",
        negatives: float = 0.0,
        seed: int = 0,
        header_checks: int = 1000,
        categories: Sequence[str] | None = None,
        read: Reader = read_coco,
        referring: bool = False,
    ) -> None:
        assert not referring or task == "grounding"
        _check_settings(task, bad_records, empty_images, negatives, header_checks)
        self._annotations, self._images = Path(annotations), Path(images)
        self._skip, self._referring = bad_records == "skip", referring
        table, problems, notes = read(self._annotations)
        sound = check_images(table, self._images, header_checks, problems)
        if len(problems) and not self._skip:
            raise FaultyRecordsError(problems)
        table = choose_categories(table.keep_images(sound), categories, self._annotations, notes)
        if portion is not None:
            table = take_portion(table, portion, self._annotations)
        self._table = table = without_empty(table, notes) if empty_images == "skip" else table
        if task == "grounding":
            self._questions, more = grounding_questions(table, negatives, seed)
            notes.extend(more)
        else:
            self._questions = np.stack([np.arange(len(table)), np.full(len(table), -1)], axis=1)
        self.categories = table.categories
        self.pixel_counts = table.sizes[self._questions[:, 0]].prod(1)
        self.object_counts = _object_counts(table, self._questions)
        self.largest = int(self.pixel_counts.argmax()) if len(self) else 0
        self.report = self._make_report(problems, notes)

    def _make_report(self, problems: Problems, notes: list[str]) -> CocoReport:
        used = len(np.unique(self._questions[:, 0]))
        if used < len(self._table):
            notes.append(f"{len(self._table) - used} images without objects are not asked about")
        report = CocoReport(
            records=len(self), images=used, objects=len(self._table.areas), problems=problems, notes=tuple(notes)
        )
        if not len(self):
            raise UserError(f"annotations={self._annotations}: no record is left to read.\n{report}")
        if len(problems) or notes:
            _log.warning("%s", report)
        return report

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
        objects = self._table.objects_of(image_row)
        rows = np.arange(objects.start, objects.stop)
        categories = self.categories
        if category_row >= 0:
            rows = rows[self._table.category_rows[rows] == category_row]
            categories = (categories[category_row],)
        image, boxes = self._upright(image_row, self._table.boxes_xyxy[rows])
        return DetectionRecord(
            image=image,
            boxes_xyxy=boxes,
            labels=tuple(self.categories[row] for row in self._table.category_rows[rows]),
            categories=categories,
            image_id=self._table.image_ids[image_row],
            origin=f"{self._annotations}[{index}]: {self._table.file_names[image_row]}",
            areas=self._table.areas[rows],
            crowd=self._table.crowd[rows],
            referring=self._referring,
        )

    def _upright(self, image_row: int, boxes: Boxes) -> tuple[Image.Image, Boxes]:
        path = self._images / self._table.file_names[image_row]
        image = open_image(path)
        width, height = self._table.sizes[image_row].tolist()
        if image.size == (width, height):
            return image, boxes.copy()
        header = read_header(path)
        if fault := size_fault(path, header, (width, height)):
            raise ImageError(f"{WRONG_SIZE}: {fault}; mend the annotations, or set bad_records: skip to leave it out")
        return image, turn_boxes(boxes, header)


def _object_counts(table: CocoTable, questions: NDArray[np.int64]) -> NDArray[np.int64]:
    """``[Q]`` number of boxes that answer each question, crowd regions left out."""
    images, categories = table.image_rows[~table.crowd], table.category_rows[~table.crowd]
    if not len(questions) or questions[0, 1] < 0:
        return np.bincount(images, minlength=len(table))[questions[:, 0]]
    pairs, counts = np.unique(images * len(table.categories) + categories, return_counts=True)
    asked = questions[:, 0] * len(table.categories) + questions[:, 1]
    at = np.searchsorted(pairs, asked).clip(max=max(len(pairs) - 1, 0))
    return np.where(pairs[at] == asked, counts[at], 0) if len(pairs) else np.zeros(len(asked), np.int64)


def _check_settings(task: str, bad_records: str, empty_images: str, negatives: float, header_checks: int) -> None:
    choices = {
        "task": (task, ("detection", "grounding")),
        "bad_records": (bad_records, ("error", "skip")),
        "empty_images": (empty_images, ("keep", "skip")),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise UserError(f"{name}={value!r}: choose {' or '.join(allowed)}")
    if not 0 <= negatives < 1:
        raise UserError(f"negatives={negatives}: give the share of negative questions, from 0 to below 1")
    if negatives and task == "detection":
        raise UserError(
            f"negatives={negatives}: only task: grounding asks for what is absent; in detection, images without "
            "objects are the negatives (empty_images: keep)"
        )
    if negatives and empty_images == "skip":
        _log.info("negatives=%s are drawn from images with objects only (empty_images: skip)", negatives)
    if header_checks < 0:
        raise UserError(f"header_checks={header_checks}: give a number of images, 0 for none")
