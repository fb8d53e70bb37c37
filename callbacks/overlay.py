"""Boxes in the form in which Weights & Biases draws them over an image."""

from collections.abc import Sequence
from typing import Any

from vr1.records import Boxes, DetectionRecord, Detections


def boxes_overlay(record: DetectionRecord, detections: Detections) -> dict[str, Any]:
    """True and found boxes, each a group that can be switched on and off.

    Args:
        record: the image and its true boxes, in pixels of the image.
        detections: what was found, likewise.

    Returns:
        What ``wandb.Image`` takes as ``boxes``. A group without a box is left out, since it refuses one.

    Example:
        >>> from vr1.drawing.examples import example_finding
        >>> finding = example_finding()
        >>> overlay = boxes_overlay(finding.record, finding.detections)
        >>> sorted(overlay), overlay["ground_truth"]["box_data"][0]["box_caption"]
        (['ground_truth', 'predictions'], 'red circle')
    """
    names = list(dict.fromkeys((*record.categories, *record.labels, *detections.labels)))
    groups = {
        "ground_truth": _boxes(record.boxes_xyxy, record.labels, names),
        "predictions": _boxes(detections.boxes_xyxy, detections.labels, names),
    }
    shown = {group: boxes for group, boxes in groups.items() if boxes}
    return {group: {"box_data": boxes, "class_labels": dict(enumerate(names))} for group, boxes in shown.items()}


def _boxes(boxes: Boxes, labels: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "position": dict(zip(("minX", "minY", "maxX", "maxY"), map(float, box), strict=True)),
            "domain": "pixel",
            "class_id": names.index(label),
            "box_caption": label,
        }
        for box, label in zip(boxes, labels, strict=True)
    ]
