"""Evaluated answers as lines of a file, in the form that ``python -m vr1 score`` reads."""

import math
from typing import Any

import numpy as np

from vr1.answer_lines import box_array
from vr1.metrics.evaluated import Evaluated
from vr1.recorded_answers import image_name
from vr1.records import DetectionRecord, Detections, Targets, as_boxes


def answer_row(
    record: DetectionRecord, detections: Detections, completion: str, instruction: str, input_size: tuple[int, int]
) -> dict[str, Any]:
    """One answer as a JSON object, ground truth and all.

    ``boxes_xyxy``, ``labels`` and ``areas`` are the true objects, ``crowd`` lists crowd regions apart, ``scores`` are
    those of the boxes that were read, which ``read`` repeats.
    """
    objects, crowd = np.flatnonzero(~record.crowd), np.flatnonzero(record.crowd)
    return {
        "set": record.set_name,
        "image": image_name(record),
        "image_id": record.image_id,
        "image_size": list(record.image_size),
        "input_size": list(input_size),
        "instruction": instruction,
        "categories": list(record.categories),
        "completion": completion,
        "read": {"boxes_xyxy": detections.boxes_xyxy.tolist(), "labels": list(detections.labels)},
        "scores": [float(score) for score in detections.scores],
        "boxes_xyxy": record.boxes_xyxy[objects].tolist(),
        "labels": [record.labels[row] for row in objects],
        "areas": record.areas[objects].tolist(),
        "crowd": [
            {"box_xyxy": record.boxes_xyxy[row].tolist(), "label": record.labels[row], "area": float(record.areas[row])}
            for row in crowd
        ],
    }


def read_row(fields: dict[str, Any], number: int) -> Evaluated:
    """The evaluated answer of a line that `answer_row` made; its completion is not read again."""
    read = fields["read"]
    found = Detections(
        boxes_xyxy=as_boxes(read["boxes_xyxy"]),
        labels=tuple(read["labels"]),
        scores=np.asarray(fields["scores"], np.float64),
        well_formed=True,
        valid=True,
    )
    targets = Targets(boxes_xyxy=as_boxes(fields["boxes_xyxy"]), labels=tuple(fields["labels"]))
    width, height = fields["image_size"]
    return evaluated_row(fields, number, targets, found, (width, height))


def evaluated_row(
    fields: dict[str, Any],
    number: int,
    targets: Targets,
    detections: Detections,
    image_size: tuple[int, int],
) -> Evaluated:
    """The evaluated answer of a line.

    Args:
        fields: what the line holds. Of ``set``, ``image``, ``image_id``, ``categories``, ``areas``, ``crowd`` and
            ``scores``, each may be missing.
        number: number of the line, taken for its image's id where it gives none.
        targets: its true objects.
        detections: what was read from its completion.
        image_size: width and height of its image in pixels.

    Raises:
        ValueError: if a field is not what it should be.
    """
    crowd = _list(fields, "crowd", [])
    if not all(isinstance(item, dict) and {"box_xyxy", "label"} <= item.keys() for item in crowd):
        raise ValueError('"crowd" is no list of {"box_xyxy", "label"}; write one object for each crowd region')
    boxes = np.concatenate([targets.boxes_xyxy, box_array([item["box_xyxy"] for item in crowd], "crowd")])
    sizes = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).tolist()
    areas = _numbers(_list(fields, "areas", sizes[: len(targets)]), "areas", least=0.0)
    crowd_sizes = zip(crowd, sizes[len(targets) :], strict=True)
    crowd_areas = _numbers([item.get("area", size) for item, size in crowd_sizes], "crowd", least=0.0)
    if len(areas) != len(targets):
        raise ValueError(f'{len(areas)} in "areas" but {len(targets)} in "boxes_xyxy"; write one area for each box')
    scores = _numbers(_list(fields, "scores", []), "scores")
    categories = _list(fields, "categories", [])
    if not all(isinstance(name, str) for name in categories):
        raise ValueError('"categories" has something that is no text; write the names that were asked for')
    image_id = fields.get("image_id", number)
    if type(image_id) is not int:
        raise ValueError('"image_id" is no whole number; write one, or leave it out')
    return Evaluated(
        set_name=str(fields.get("set", "")),
        image_id=image_id,
        image=str(fields.get("image") or f"line {number}"),
        image_size=image_size,
        categories=tuple(categories),
        boxes=detections.boxes_xyxy,
        labels=detections.labels,
        # A file that was scored with another grammar gives scores of other boxes.
        scores=np.asarray(scores, np.float64) if len(scores) == len(detections) else detections.scores,
        true_boxes=boxes,
        true_labels=(*targets.labels, *(str(item["label"]) for item in crowd)),
        areas=np.asarray([*areas, *crowd_areas], np.float64),
        crowd=np.arange(len(boxes)) >= len(targets),
    )


def _list(fields: dict[str, Any], name: str, default: list[Any]) -> list[Any]:
    value = fields.get(name, default)
    if not isinstance(value, list):
        raise ValueError(f'"{name}" is no list; write one, or leave it out')
    return value


def _numbers(values: list[Any], name: str, least: float = -math.inf) -> list[float]:
    if not all(type(value) in (int, float) and least <= value < math.inf for value in values):
        above = "" if least == -math.inf else f" from {least:g}"
        raise ValueError(f'"{name}" has something that is no finite number{above}; write one for each box')
    return values
