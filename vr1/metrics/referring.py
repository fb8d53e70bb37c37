"""Accuracy of referring expressions: the share of answers whose box is right."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from vr1.boxes import pairwise_iou
from vr1.errors import UserError
from vr1.types import Boxes, DetectionRecord, Detections


class ReferringAccuracy(Metric):
    """Share of answers whose first box overlaps the one true box by at least ``threshold``.

    Only the first box counts, as in the published evaluations. Labels and the form of the answer do not matter. A
    record that occurs twice (a distributed sampler repeats some to fill the last batch) counts twice.

    Args:
        threshold: smallest IoU of a right box.
        kwargs: settings of every torchmetrics metric.

    Raises:
        UserError: the threshold is not above 0 and at most 1, or a record does not have exactly one true box.

    Source: Mao et al., Generation and Comprehension of Unambiguous Object Descriptions, arXiv 1511.02283; Yu et al.,
        Modeling Context in Referring Expressions, arXiv 1608.00272.

    Example:
        >>> from vr1.metrics.referring import first_box_hits
        >>> from vr1.types import as_boxes
        >>> first_box_hits(as_boxes([[0, 0, 10, 6], [0, 0, 10, 10]]), as_boxes([0, 0, 10, 10]), threshold=0.5)
        True
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    hits: Tensor
    answers: Tensor

    def __init__(self, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < threshold <= 1:
            raise UserError(f"ReferringAccuracy(threshold={threshold}): give an IoU above 0 and at most 1")
        self.threshold = threshold
        for name in ("hits", "answers"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, detections: Sequence[Detections], records: Sequence[DetectionRecord]) -> None:
        """Count the answers to some records, boxes in image pixels.

        Raises:
            UserError: the numbers of answers and records differ, or a record does not have exactly one true box.
        """
        if len(detections) != len(records):
            raise UserError(
                f"ReferringAccuracy: {len(detections)} answers to {len(records)} records; give one for each record"
            )
        for answer, record in zip(detections, records, strict=True):
            true = record.boxes_xyxy[~record.crowd]
            if len(true) != 1:
                raise UserError(
                    f"ReferringAccuracy: {record.origin} has {len(true)} true boxes; an expression refers to one, so "
                    "use CocoMetrics for other data"
                )
            self.hits += first_box_hits(answer.boxes_xyxy, true, self.threshold)
            self.answers += 1

    def compute(self) -> Tensor:
        """The accuracy in 0..1; 0 without answers."""
        return (self.hits / self.answers.clamp(min=1)).float()

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one result of `compute`, or a list of them over time."""
        return self._plot(val, ax)


def expression_hit(boxes: Boxes, true: Boxes, crowd: NDArray[np.bool_], categories: Sequence[str]) -> bool | None:
    """Whether the first predicted box ``[N, 4]`` has an IoU of at least 0.5 with the one true box.

    None if the question is no referring expression: it has several categories, or there is not exactly one true box
    among the ``[M, 4]`` that are no ``crowd`` ``[M]``.
    """
    one = true[~crowd]
    return first_box_hits(boxes, one, 0.5) if len(one) == len(categories) == 1 else None


def first_box_hits(boxes: Boxes, true: Boxes, threshold: float) -> bool:
    """Whether the first of the boxes ``[N, 4]`` overlaps the true box ``[1, 4]`` by at least ``threshold``."""
    return bool(len(boxes)) and bool(pairwise_iou(boxes[:1], true)[0, 0] >= threshold)
