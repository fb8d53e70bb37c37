"""Detections and ground truth -> the match that every reward term reads.

Shape letters: N predicted boxes, M ground-truth boxes, K = min(N, M) matched pairs.
"""

import math
import unicodedata
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from vr1.boxes import pairwise_giou, pairwise_iou
from vr1.errors import UserError
from vr1.types import Boxes, Detections, Match, Targets

# Decides between assignments of equal cost, and is too small to change any other.
_TIE_BREAK = 1e-9


class BoxMatcher:
    """One-to-one assignment of predicted to true boxes of the lowest total cost.

    ``cost = l1 * L1 - iou * IoU - giou * GIoU - label * [labels agree]``, where L1 is the sum of the four absolute
    coordinate differences in pixels. Among assignments of equal cost, one with more agreeing labels is taken. Labels
    agree if they are the same text, ignoring case, surrounding spaces and a final full stop.

    Args:
        l1: weight of the L1 distance.
        iou: weight of the IoU.
        giou: weight of the GIoU.
        label: weight of the label agreement.
        overlap: which overlap of a pair the rewards read: its IoU or its GIoU.
        label_rule: ``zero`` sets the overlap of a pair to 0 if its labels disagree; ``ignore`` does not.

    Raises:
        UserError: a weight is negative or not finite, all are 0, or a choice is unknown.

    Source: Vision-R1, arXiv 2503.18013, section 3.2, Eq. 3 and Table 3 (box only against box and label). The released
        code is ``BoxMatcher(l1=1, iou=0, giou=1, label=1, overlap="giou", label_rule="ignore")``.

    Example:
        >>> from vr1.types import Detections, Targets, as_boxes
        >>> detections = Detections(
        ...     boxes_xyxy=as_boxes([[0, 0, 9, 9], [0, 0, 10, 10]]), labels=("cat", "Cat."),
        ...     scores=np.full(2, 0.99), well_formed=True, valid=True,
        ... )
        >>> match = BoxMatcher()(detections, Targets(boxes_xyxy=as_boxes([0, 0, 10, 10]), labels=("cat",)))
        >>> match.predicted.tolist(), match.target.tolist(), match.overlap.tolist()
        ([1], [0], [1.0])
    """

    def __init__(
        self,
        l1: float = 0.0,
        iou: float = 1.0,
        giou: float = 0.0,
        label: float = 0.0,
        overlap: Literal["iou", "giou"] = "iou",
        label_rule: Literal["zero", "ignore"] = "zero",
    ) -> None:
        weights = {"l1": l1, "iou": iou, "giou": giou, "label": label}
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise UserError(f"BoxMatcher({name}={weight}): a weight of the cost must be a finite number >= 0")
        if not any(weights.values()):
            raise UserError("BoxMatcher: every weight of the cost is 0; set at least one of l1, iou, giou, label")
        if overlap not in ("iou", "giou"):
            raise UserError(f"BoxMatcher(overlap={overlap!r}): must be 'iou' or 'giou'")
        if label_rule not in ("zero", "ignore"):
            raise UserError(f"BoxMatcher(label_rule={label_rule!r}): must be 'zero' or 'ignore'")
        self.l1, self.iou, self.giou, self.label = l1, iou, giou, label
        self.overlap, self.label_rule = overlap, label_rule

    def __call__(self, detections: Detections, targets: Targets) -> Match:
        """Match the N detections of one completion to the M true boxes of its image.

        Args:
            detections: N boxes in image pixels.
            targets: M boxes in image pixels.

        Returns:
            All K pairs of the assignment, in the order of the detections.
        """
        num_predicted, num_targets = len(detections), len(targets)
        predicted = target = np.zeros(0, dtype=np.int64)
        overlap = box_overlap = np.zeros(0)
        if num_predicted and num_targets:
            boxes, others = detections.boxes_xyxy, targets.boxes_xyxy
            iou = pairwise_iou(boxes, others) if self.iou or self.overlap == "iou" else None
            giou = pairwise_giou(boxes, others) if self.giou or self.overlap == "giou" else None
            agree = _labels_agree(detections.labels, targets.labels)
            predicted, target = self._assign(boxes, others, iou, giou, agree)
            overlaps = iou if self.overlap == "iou" else giou
            assert overlaps is not None
            overlap = box_overlap = overlaps[predicted, target]
            if self.label_rule == "zero":
                overlap = overlap * agree[predicted, target]
        return Match(
            predicted=predicted,
            target=target,
            overlap=overlap,
            box_overlap=box_overlap,
            num_predicted=num_predicted,
            num_targets=num_targets,
            detections=detections,
            targets=targets,
        )

    def _assign(
        self, boxes: Boxes, others: Boxes, iou: Boxes | None, giou: Boxes | None, agree: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of the assignment; a ``[N, M]`` matrix that the cost does not need may be None."""
        if agree.size == 1:
            only = np.zeros(1, dtype=np.int64)
            return only, only
        cost = -(self.label + _TIE_BREAK) * agree
        if iou is not None:
            cost = cost - self.iou * iou
        if giou is not None:
            cost = cost - self.giou * giou
        if self.l1:
            cost = cost + self.l1 * np.abs(boxes[:, None] - others[None]).sum(-1)
        if len(others) == 1:
            return cost.argmin(axis=0), np.zeros(1, dtype=np.int64)
        return linear_sum_assignment(cost)


def _labels_agree(predicted: tuple[str, ...], target: tuple[str, ...]) -> NDArray[np.bool_]:
    """``[N, M]`` bool: the two labels are the same text."""
    # Each distinct label is folded once: an answer repeats a few.
    folded = {label: fold_label(label) for label in {*predicted, *target}}
    number = {text: index for index, text in enumerate({*folded.values()})}
    if len(number) == 1:
        return np.ones((len(predicted), len(target)), dtype=np.bool_)
    rows = np.array([number[folded[label]] for label in predicted])
    return rows[:, None] == np.array([number[folded[label]] for label in target])


def fold_label(label: str) -> str:
    r"""A label as it is compared: without what models vary freely: case, outer spaces, a final full stop, Unicode form.

    Example:
        >>> fold_label(" Traffic Light. ")
        'traffic light'
        >>> fold_label("Ka\u0308fer") == fold_label("K\u00e4fer")
        True
    """
    label = unicodedata.normalize("NFC", label)
    return label.strip().removesuffix(".").rstrip().casefold()
