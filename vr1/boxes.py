"""Boxes ``[x1, y1, x2, y2]`` as arrays: change of frame, pairwise IoU and GIoU, what true boxes must be.

Shape letters: N and M boxes.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vr1.errors import UserError
from vr1.types import Boxes, DetectionRecord

Frame = Literal["input", "image"] | float
"""Unit of the coordinates of a box: pixels of the model's ``input``, pixels of the ``image`` as stored, or the number
that both axes of the image end at, whatever its size (such as 1000 or 1)."""


@dataclass(frozen=True, kw_only=True)
class BoxRules:
    """What becomes of written boxes that are not inside the image, or whose corners are swapped.

    An answer with such a box is not valid, whatever becomes of it. The defaults let it count for recall and precision.

    Args:
        outside: ``clip`` boxes to the image, or ``keep`` them as they are written.
        swapped: ``order`` the corners, or ``drop`` boxes that do not have ``x1 < x2`` and ``y1 < y2``.
        whole_numbers: cut the numbers to whole ones, in the frame in which they are written, before anything else.

    Raises:
        UserError: a choice is unknown.

    Source: the released code of Vision-R1 computes ``BoxRules(outside="keep", swapped="drop", whole_numbers=True)``.

    Example:
        >>> from vr1.types import as_boxes
        >>> boxes = as_boxes([[1.9, 2, 30, 40], [9, 2, 3, 4]])
        >>> BoxRules()(boxes, (20, 50))[0].tolist()
        [[1.9, 2.0, 20.0, 40.0], [3.0, 2.0, 9.0, 4.0]]
        >>> BoxRules(outside="keep", swapped="drop", whole_numbers=True)(boxes, (20, 50))[0].tolist()
        [[1.0, 2.0, 30.0, 40.0]]
    """

    outside: Literal["clip", "keep"] = "clip"
    swapped: Literal["order", "drop"] = "order"
    whole_numbers: bool = False

    def __post_init__(self) -> None:
        if self.outside not in ("clip", "keep"):
            raise UserError(f"box_rules.outside={self.outside!r}: must be clip or keep")
        if self.swapped not in ("order", "drop"):
            raise UserError(f"box_rules.swapped={self.swapped!r}: must be order or drop")

    def __call__(self, boxes: Boxes, size: tuple[float, float]) -> tuple[Boxes, NDArray[np.bool_]]:
        """Apply the rules.

        Args:
            boxes: ``[N, 4]`` as written; those that are not finite are dropped.
            size: largest x and y inside the image, in the same frame.

        Returns:
            The boxes that remain, and ``[N]`` whether each of the N does.
        """
        rows = np.asarray(np.isfinite(boxes).all(axis=1), dtype=np.bool_)
        if self.whole_numbers:
            boxes = np.trunc(boxes)
        if self.swapped == "drop":
            rows &= (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
        corners = np.sort(boxes[rows].reshape(-1, 2, 2), axis=1)
        # Coordinates that are kept must not overflow in another frame or as an area.
        low, high = (np.zeros(2), np.array(size)) if self.outside == "clip" else (-_FARTHEST, _FARTHEST)
        return np.clip(corners, low, high).reshape(-1, 4), rows


_FARTHEST = 1e9


def frame_size(frame: Frame, image_size: tuple[int, int], input_size: tuple[int, int]) -> tuple[float, float]:
    """Largest x and y of a frame.

    Args:
        frame: unit of the coordinates.
        image_size: width and height in pixels of the image as stored.
        input_size: width and height in pixels of the image as the processor resized it.

    Example:
        >>> frame_size("input", (640, 480), (364, 280)), frame_size(1000, (640, 480), (364, 280))
        ((364.0, 280.0), (1000.0, 1000.0))
    """
    if frame == "input":
        return float(input_size[0]), float(input_size[1])
    if frame == "image":
        return float(image_size[0]), float(image_size[1])
    return float(frame), float(frame)


def rescale(boxes: Boxes, from_size: tuple[float, float], to_size: tuple[float, float]) -> Boxes:
    """Convert boxes from one size of an image to another.

    Args:
        boxes: ``[N, 4]`` corners in pixels of the image at ``from_size``.
        from_size: width and height in pixels.
        to_size: width and height in pixels.

    Returns:
        ``[N, 4]`` corners in pixels of the image at ``to_size``.

    Example:
        >>> from vr1.types import as_boxes
        >>> rescale(as_boxes([[1, 2, 3, 4]]), (10, 10), (20, 30))
        array([[ 2.,  6.,  6., 12.]])
    """
    x, y = to_size[0] / from_size[0], to_size[1] / from_size[1]
    return boxes * np.array([x, y, x, y])


def pairwise_iou(boxes: Boxes, others: Boxes) -> Boxes:
    """Intersection over union of every box with every other box.

    Args:
        boxes: ``[N, 4]`` corners, any frame.
        others: ``[M, 4]`` corners in the same frame.

    Returns:
        ``[N, M]`` float64 in 0..1; 0 where both boxes have no area.

    Example:
        >>> from vr1.types import as_boxes
        >>> pairwise_iou(as_boxes([0, 0, 2, 2]), as_boxes([[0, 0, 2, 2], [1, 0, 3, 2]])).round(3)
        array([[1.   , 0.333]])
    """
    intersection, union = _intersection_and_union(boxes.T[:, :, None], others.T[:, None])
    return intersection / np.where(union > 0, union, 1.0)


def pairwise_giou(boxes: Boxes, others: Boxes) -> Boxes:
    """Generalised IoU: IoU minus the share of the smallest enclosing box that neither box covers.

    Args:
        boxes: ``[N, 4]`` corners, any frame.
        others: ``[M, 4]`` corners in the same frame.

    Returns:
        ``[N, M]`` float64 in -1..1; 0 where the smallest enclosing box has no area.

    Source: Rezatofighi et al., Generalized Intersection over Union, arXiv 1902.09630, algorithm 1.

    Example:
        >>> from vr1.types import as_boxes
        >>> pairwise_giou(as_boxes([0, 0, 1, 1]), as_boxes([[0, 0, 1, 1], [2, 0, 3, 1]])).round(3)
        array([[ 1.   , -0.333]])
    """
    first, second = boxes.T[:, :, None], others.T[:, None]
    intersection, union = _intersection_and_union(first, second)
    width = np.maximum(first[2], second[2]) - np.minimum(first[0], second[0])
    height = np.maximum(first[3], second[3]) - np.minimum(first[1], second[1])
    enclosing = width * height
    iou = intersection / np.where(union > 0, union, 1.0)
    return iou - (enclosing - union) / np.where(enclosing > 0, enclosing, 1.0)


def _intersection_and_union(first: Boxes, second: Boxes) -> tuple[Boxes, Boxes]:
    """Areas ``[N, M]`` of intersection and union of boxes ``[4, N, 1]`` and ``[4, 1, M]``."""
    width = np.minimum(first[2], second[2]) - np.maximum(first[0], second[0])
    height = np.minimum(first[3], second[3]) - np.maximum(first[1], second[1])
    intersection = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    areas = (first[2] - first[0]) * (first[3] - first[1]) + (second[2] - second[0]) * (second[3] - second[1])
    return intersection, areas - intersection


def check_boxes(record: DetectionRecord) -> None:
    """Check the true boxes of a record, which a data set of a user's own may have written in any way.

    Args:
        record: of a data set.

    Raises:
        UserError: a box is not finite or has no area (x1 < x2 and y1 < y2), or there are not as many labels, areas and
            crowd flags as boxes.
    """
    boxes, count = record.boxes_xyxy, len(record.boxes_xyxy)
    for name, values in (("labels", record.labels), ("areas", record.areas), ("crowd", record.crowd)):
        if len(values) != count:
            raise UserError(f"{record.origin}: {count} boxes and {len(values)} {name}; give one for each box")
    good = np.isfinite(boxes).all(axis=1) & (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        numbers = ", ".join(f"{value:g}" for value in boxes[row])
        raise UserError(
            f"{record.origin}: box {row} is {numbers}; give corners in pixels of the image, x1 < x2 and y1 < y2"
        )
