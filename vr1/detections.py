"""Completion -> detections: the boxes of an answer in image pixels, and whether its content is valid.

Shape letter: N predicted boxes.
"""

import numpy as np

from vr1.families import Family
from vr1.records import Boxes, Detections

SCORE = 0.99
"""Every released evaluation of this method gives each box this score; `vr1.box_scores` tells boxes apart."""


def read_detections(
    completion: str,
    family: Family,
    image_size: tuple[int, int],
    input_size: tuple[int, int],
) -> Detections:
    """Read a completion into boxes in image pixels.

    Boxes that are usable but not valid (corners swapped, outside the image) are ordered, clipped and kept, so that
    recall and precision still see them; only ``valid`` tells.

    Args:
        completion: the text as the model wrote it. It never raises, whatever it holds.
        family: grammar and coordinate frame.
        image_size: width and height of the image in pixels.
        input_size: width and height in pixels of what the processor made of it.

    Returns:
        N detections, each with the score `SCORE`.

    Source: Vision-R1, arXiv 2503.18013, Eq. 4 (content of the dual format reward).

    Example:
        >>> from vr1.families import Qwen25VL
        >>> text = '[{"bbox_2d": [30, 2, 10, 400], "label": "cat"}]'
        >>> found = read_detections(text, Qwen25VL(), image_size=(200, 400), input_size=(100, 200))
        >>> found.boxes_xyxy.tolist(), found.well_formed, found.valid
        ([[20.0, 4.0, 60.0, 400.0]], True, False)
    """
    answer = family.read(completion)
    frame = np.array(family.frame_size(image_size, input_size))
    boxes, labels = answer.boxes, answer.labels
    complete = answer.follows_template and not answer.problems
    inside = _in_frame(boxes, frame)
    if not inside:
        finite = np.isfinite(boxes).all(axis=1)
        labels = tuple(label for label, is_finite in zip(labels, finite, strict=True) if is_finite)
        # Clipped before it is converted, since a coordinate of 1e308 would overflow in the conversion.
        boxes = _ordered_and_clipped(boxes[finite], frame)
    return Detections(
        boxes_xyxy=family.to_image(boxes, image_size, input_size),
        labels=labels,
        scores=np.full(len(labels), SCORE),
        well_formed=answer.follows_template,
        valid=complete and inside and all(map(str.strip, labels)),
        completion=completion,
    )


def _in_frame(boxes: Boxes, frame: Boxes) -> bool:
    """All boxes ``[N, 4]`` are finite and ordered, have an area and lie in ``0..frame``."""
    top_left, bottom_right = boxes[:, :2], boxes[:, 2:]
    ordered = (top_left < bottom_right).all()
    return bool(ordered and (top_left >= 0).all() and (bottom_right <= frame).all())


def _ordered_and_clipped(boxes: Boxes, frame: Boxes) -> Boxes:
    """Boxes ``[N, 4]`` with the smaller coordinates first and all of them in ``0..frame``."""
    corners = np.sort(boxes.reshape(-1, 2, 2), axis=1)
    return np.clip(corners, 0.0, frame).reshape(-1, 4)
