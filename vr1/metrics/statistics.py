"""Statistics of answers: share of valid answers, number of boxes, and overlap with the true boxes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from vr1.types import Match


class AnswerStatistics(Metric):
    """Share of valid answers, boxes per answer and overlap of the matched boxes.

    Example:
        >>> import numpy as np
        >>> from vr1.types import Detections, Match, Targets, as_boxes
        >>> answer = Detections(
        ...     boxes_xyxy=as_boxes([[0, 0, 4, 4], [5, 5, 9, 9]]), labels=("cat", "cat"), scores=np.ones(2),
        ...     well_formed=True, valid=True,
        ... )
        >>> match = Match(
        ...     predicted=np.array([1]), target=np.array([0]), overlap=np.array([0.75]),
        ...     box_overlap=np.array([0.75]),
        ...     num_predicted=2, num_targets=1, detections=answer,
        ...     targets=Targets(boxes_xyxy=as_boxes([5, 5, 9, 8]), labels=("cat",)),
        ... )
        >>> statistics = AnswerStatistics()
        >>> statistics.update([match])
        >>> {name: float(value) for name, value in statistics.compute().items()}
        {'valid_rate': 1.0, 'boxes_per_image': 2.0, 'overlap': 0.75}
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    answers: Tensor
    valid: Tensor
    boxes: Tensor
    pairs: Tensor
    overlap: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("answers", "valid", "boxes", "pairs", "overlap"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, matches: Sequence[Match]) -> None:
        """Count the answers of one batch.

        Args:
            matches: one for each completion.
        """
        self.answers += len(matches)
        self.valid += sum(match.detections.valid for match in matches)
        self.boxes += sum(match.num_predicted for match in matches)
        self.pairs += sum(len(match.overlap) for match in matches)
        self.overlap += sum(float(match.overlap.sum()) for match in matches)

    def compute(self) -> dict[str, Tensor]:
        """The three figures as scalar float tensors.

        Returns:
            ``valid_rate`` (0..1, template and content), ``boxes_per_image`` and ``overlap``, the mean over matched
            pairs, which is 0 without pairs. All are 0 without answers.
        """
        answers, pairs = self.answers.clamp(min=1), self.pairs.clamp(min=1)
        return {
            "valid_rate": (self.valid / answers).float(),
            "boxes_per_image": (self.boxes / answers).float(),
            "overlap": (self.overlap / pairs).float(),
        }

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one result of `compute`, or a list of them over time."""
        return self._plot(val, ax)
