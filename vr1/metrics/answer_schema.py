"""A recorded answer: the question, the answer and the ground truth, and the JSON object that stores them.

Shape letters: N predicted boxes, M ground-truth boxes.
"""

import contextlib
import math
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vr1.errors import UserError
from vr1.metrics.coco_eval import rows_in_categories
from vr1.types import Boxes, DetectionRecord, Detections, Targets, as_boxes

REQUIRED_FIELDS = ("completion", "boxes_xyxy", "labels", "image_size", "input_size")
"""The fields that every line needs; all others have a default."""

QuestionKey = tuple[str, int, str, str, tuple[int, int]]
"""Set, image id, image, instruction and size of the model's input. Questions with equal keys have the same answer."""

_LARGEST_PIXEL = 1e7


def _no_boxes() -> Boxes:
    return as_boxes([])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RecordedAnswer:
    """One answer of a model with its question and its ground truth. All boxes are corners in pixels of the image.

    Attributes:
        completion: the answer as the model wrote it.
        image_size: width and height of the image in pixels.
        input_size: width and height in pixels of the image as the model saw it.
        true_boxes: ``[M, 4]`` float64, crowd regions last.
        true_labels: M labels.
        areas: ``[M]`` float64 object areas in square pixels.
        crowd: ``[M]`` bool.
        categories: the categories of the question; empty where they are not recorded.
        image_id: unique within the set.
        image: name of the image file.
        set_name: the data set, empty where there is only one.
        instruction: text of the question; empty where it is not recorded.
        boxes: ``[N, 4]`` float64, the predicted boxes.
        labels: N labels of the predicted boxes.
        scores: ``[N]`` float64 confidences.

    Example:
        >>> line = {"completion": "[]", "boxes_xyxy": [[1, 2, 3, 4]], "labels": ["cat"], "image_size": [8, 8]}
        >>> answer = RecordedAnswer.from_json(line | {"input_size": [8, 8]}, number=7)
        >>> answer.image_id, answer.areas.tolist(), answer.to_json()["labels"]
        (7, [4.0], ['cat'])
    """

    completion: str
    image_size: tuple[int, int]
    input_size: tuple[int, int]
    true_boxes: Boxes
    true_labels: tuple[str, ...]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    categories: tuple[str, ...]
    image_id: int
    image: str
    set_name: str = ""
    instruction: str = ""
    boxes: Boxes = field(default_factory=_no_boxes)
    labels: tuple[str, ...] = ()
    scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def from_record(
        cls,
        record: DetectionRecord,
        detections: Detections,
        completion: str,
        instruction: str,
        input_size: tuple[int, int],
    ) -> Self:
        """The answer to the question about a record.

        Args:
            record: the image and its ground truth.
            detections: the boxes read from the completion, in image pixels.
            completion: the answer as the model wrote it.
            instruction: text of the question.
            input_size: width and height in pixels of the image as the model saw it.
        """
        order = np.argsort(record.crowd, kind="stable")
        return cls(
            completion=completion,
            image_size=record.image_size,
            input_size=input_size,
            true_boxes=record.boxes_xyxy[order],
            true_labels=tuple(record.labels[row] for row in order),
            areas=record.areas[order],
            crowd=record.crowd[order],
            categories=record.categories,
            image_id=record.image_id,
            image=image_name(record),
            set_name=record.set_name,
            instruction=instruction,
            boxes=detections.boxes_xyxy,
            labels=detections.labels,
            scores=detections.scores,
        )

    @classmethod
    def from_json(cls, fields: dict[str, Any], number: int) -> Self:
        """The answer that `to_json` wrote, or that another program wrote in this form.

        Args:
            fields: ``completion``, ``boxes_xyxy``, ``labels``, ``image_size`` and ``input_size``; optional are ``set``,
                ``image``, ``image_id``, ``instruction``, ``categories``, ``areas``, ``crowd``, ``scores`` and ``read``
                (the predicted boxes). Other fields are ignored.
            number: number of the line. It is the ``image_id`` where the line has none.

        Raises:
            UserError: a field is missing or has a wrong type or value.
        """
        for name in REQUIRED_FIELDS:
            if name not in fields:
                raise UserError(f'no "{name}"; a line needs {", ".join(REQUIRED_FIELDS)}')
        if not isinstance(fields["completion"], str):
            raise UserError('"completion" is no text; give the answer as the model wrote it')
        true_boxes, true_labels, areas, crowd = _ground_truth(fields)
        boxes, labels = _read_boxes(fields)
        scores = _numbers(_list(fields, "scores"), "scores")
        if "read" in fields and len(scores) != len(boxes):
            raise UserError(f'{len(scores)} in "scores" but {len(boxes)} in "read"; write one score for each box')
        categories = _list(fields, "categories")
        if not all(isinstance(name, str) for name in categories):
            raise UserError('"categories" has something that is no text; write the category names of the question')
        image_id = fields.get("image_id", number)
        if type(image_id) is not int:
            raise UserError('"image_id" is no integer; write one, or leave it out')
        return cls(
            completion=fields["completion"],
            image_size=_size(fields, "image_size"),
            input_size=_size(fields, "input_size"),
            true_boxes=true_boxes,
            true_labels=true_labels,
            areas=areas,
            crowd=crowd,
            categories=tuple(categories),
            image_id=image_id,
            image=str(fields.get("image") or f"line {number}"),
            set_name=str(fields.get("set", "")),
            instruction=str(fields.get("instruction", "")),
            boxes=boxes,
            labels=labels,
            scores=np.asarray(scores, np.float64),
        )

    def to_json(self) -> dict[str, Any]:
        """The answer as one JSON object.

        ``boxes_xyxy``, ``labels`` and ``areas`` are the true objects, ``crowd`` the crowd regions; ``read`` holds the
        predicted boxes and labels, ``scores`` their scores.
        """
        objects, regions = np.flatnonzero(~self.crowd), np.flatnonzero(self.crowd)
        return {
            "set": self.set_name,
            "image": self.image,
            "image_id": self.image_id,
            "image_size": list(self.image_size),
            "input_size": list(self.input_size),
            "instruction": self.instruction,
            "categories": list(self.categories),
            "completion": self.completion,
            "read": {"boxes_xyxy": self.boxes.tolist(), "labels": list(self.labels)},
            "scores": [float(score) for score in self.scores],
            "boxes_xyxy": self.true_boxes[objects].tolist(),
            "labels": [self.true_labels[row] for row in objects],
            "areas": self.areas[objects].tolist(),
            "crowd": [
                {
                    "box_xyxy": self.true_boxes[row].tolist(),
                    "label": self.true_labels[row],
                    "area": float(self.areas[row]),
                }
                for row in regions
            ],
        }

    @property
    def targets(self) -> Targets:
        """The true objects, without the crowd regions."""
        count = len(self.crowd) - int(self.crowd.sum())
        return Targets(boxes_xyxy=self.true_boxes[:count], labels=self.true_labels[:count])

    @property
    def key(self) -> QuestionKey:
        """The question that this answers; see `question_key`."""
        return (self.set_name, self.image_id, self.image, self.instruction, self.input_size)

    def with_detections(self, detections: Detections) -> Self:
        """The same answer with the boxes of `detections`; recorded scores stay where there is one for each box."""
        scores = self.scores if len(self.scores) == len(detections) else detections.scores
        return replace(self, boxes=detections.boxes_xyxy, labels=detections.labels, scores=scores)

    def rows_in_categories(self) -> list[int]:
        """Rows of the predicted boxes whose label is a category of the question; COCO drops all others."""
        return rows_in_categories(self.labels, self.categories)


def question_key(record: DetectionRecord, instruction: str, input_size: tuple[int, int]) -> QuestionKey:
    """What identifies the question about a record, between runs too."""
    return (record.set_name, record.image_id, image_name(record), instruction, input_size)


def image_name(record: DetectionRecord) -> str:
    """The image of a record, without the annotation file and line that its origin names first."""
    return record.origin.rpartition("]: ")[2]


def _ground_truth(
    fields: dict[str, Any],
) -> tuple[Boxes, tuple[str, ...], NDArray[np.float64], NDArray[np.bool_]]:
    """True boxes, labels, areas and crowd flags of a line, crowd regions last."""
    boxes, labels = _boxes(fields["boxes_xyxy"], "boxes_xyxy"), _labels(fields["labels"], "labels")
    if len(boxes) != len(labels):
        raise UserError(f'{len(boxes)} in "boxes_xyxy" but {len(labels)} in "labels"; write one label for each box')
    areas = _numbers(_list(fields, "areas"), "areas", least=0.0) if "areas" in fields else _areas(boxes)
    if len(areas) != len(boxes):
        raise UserError(f'{len(areas)} in "areas" but {len(boxes)} in "boxes_xyxy"; write one area for each box')
    if not (regions := _list(fields, "crowd")):
        return boxes, labels, np.asarray(areas, np.float64), np.zeros(len(boxes), bool)
    if not all(isinstance(item, dict) and {"box_xyxy", "label"} <= item.keys() for item in regions):
        raise UserError('"crowd" is no list of {"box_xyxy", "label"}; write one object for each crowd region')
    crowd_boxes = _boxes([item["box_xyxy"] for item in regions], "crowd")
    given = [item.get("area", size) for item, size in zip(regions, _areas(crowd_boxes), strict=True)]
    return (
        np.concatenate([boxes, crowd_boxes]),
        (*labels, *(str(item["label"]) for item in regions)),
        np.asarray([*areas, *_numbers(given, "crowd", least=0.0)], np.float64),
        np.arange(len(boxes) + len(regions)) >= len(boxes),
    )


def _read_boxes(fields: dict[str, Any]) -> tuple[Boxes, tuple[str, ...]]:
    """The predicted boxes and labels of a line; none where it has no ``read``."""
    if "read" not in fields:
        return _no_boxes(), ()
    read = fields["read"]
    if not (isinstance(read, dict) and {"boxes_xyxy", "labels"} <= read.keys()):
        raise UserError('"read" is no object with "boxes_xyxy" and "labels"; write one, or leave it out')
    boxes, labels = _boxes(read["boxes_xyxy"], "read.boxes_xyxy"), _labels(read["labels"], "read.labels")
    if len(boxes) != len(labels):
        raise UserError(f'{len(boxes)} boxes but {len(labels)} labels in "read"; write one label for each box')
    return boxes, labels


def _boxes(boxes: Any, name: str) -> Boxes:
    """Boxes as an array ``[M, 4]``: all are checked at once, and one by one only to name the wrong one."""
    if not isinstance(boxes, list):
        raise UserError(f'"{name}" is no list; write [[x1, y1, x2, y2], ...], or [] for an image without an object')
    if {*map(type, boxes)} <= {list} and {*map(len, boxes)} <= {4} and {*map(type, chain(*boxes))} <= {int, float}:
        with contextlib.suppress(OverflowError):
            array = as_boxes(boxes)
            if (np.abs(array) <= _LARGEST_PIXEL).all() and (array[:, :2] <= array[:, 2:]).all():
                return array
    for index, box in enumerate(boxes):
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_pixel, box))):
            raise UserError(f'"{name}"[{index}] is not four finite numbers; write [x1, y1, x2, y2] in image pixels')
        if box[0] > box[2] or box[1] > box[3]:
            raise UserError(
                f'"{name}"[{index}] = {box} has x2 < x1 or y2 < y1; write two corners, not a corner and a size'
            )
    raise AssertionError(boxes)


def _labels(labels: Any, name: str) -> tuple[str, ...]:
    if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise UserError(f'"{name}" is no list of texts; write one label for each box')
    return tuple(labels)


def _areas(boxes: Boxes) -> list[float]:
    areas: list[float] = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).tolist()
    return areas


def _size(fields: dict[str, Any], name: str) -> tuple[int, int]:
    size = fields[name]
    if not (isinstance(size, list) and len(size) == 2 and all(map(_is_pixel, size)) and min(size) > 0):
        raise UserError(f'"{name}" is not a width and a height above 0; write [width, height] in pixels')
    return size[0], size[1]


def _is_pixel(value: Any) -> bool:
    """Whether a value is a finite number in the range of pixel coordinates."""
    return type(value) in (int, float) and -_LARGEST_PIXEL <= value <= _LARGEST_PIXEL


def _list(fields: dict[str, Any], name: str) -> list[Any]:
    value = fields.get(name, [])
    if not isinstance(value, list):
        raise UserError(f'"{name}" is no list; write one, or leave it out')
    return value


def _numbers(values: list[Any], name: str, least: float = -math.inf) -> list[float]:
    if not all(type(value) in (int, float) and least <= value < math.inf for value in values):
        above = "" if least == -math.inf else f" from {least:g}"
        raise UserError(f'"{name}" has something that is no finite number{above}; write one for each box')
    return values
