"""The mAP-style reward: COCO's average precision of a single answer.

Shape letters: N predicted and M true boxes of one category.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from vr1.boxes import pairwise_iou
from vr1.matching import fold_label
from vr1.records import Boxes, Match
from vr1.rewards.criterion import Criterion
from vr1.rewards.nothing_to_find import reward_without_targets
from vr1.rewards.term import RewardTerm

_RECALLS = np.linspace(0.0, 1.0, 101)
_MOST = 100  # boxes of one category that COCO looks at


class AveragePrecision(RewardTerm):
    """Mean over categories and thresholds of the average precision of one answer.

    All boxes of an answer have one score, so they count in the order in which they were written: it pays to write the
    surest first. This term does its own greedy matching by category, as COCO does, and reads nothing of the shared
    match but the boxes. Without an object in the image, an empty and valid answer earns 1 and any other 0.

    Args:
        thresholds: the overlaps to measure at; ``[0.5]`` is VLM-R1's. None takes COCO's ten, 0.5 to 0.95.
        absent: what a predicted category earns that is not in the image: ``zero``, so that made-up labels cost, or
            ``ignore``: COCO leaves it out.

    Raises:
        ValueError: if a threshold is not in 0..1, there is none, or ``absent`` is neither.

    Source: VLM-R1, github.com/om-ai-lab/VLM-R1, ``map_reward``; pycocotools.cocoeval.

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.records import Detections, Targets, as_boxes
        >>> found = Detections(
        ...     boxes_xyxy=as_boxes([[0, 0, 10, 8], [40, 0, 50, 9]]), labels=("cat", "dog"), scores=np.full(2, 0.99),
        ...     well_formed=True, valid=True,
        ... )
        >>> match = BoxMatcher()(found, Targets(boxes_xyxy=as_boxes([0, 0, 10, 10]), labels=("cat",)))
        >>> round(AveragePrecision().score(match, Criterion()), 2)
        0.35
        >>> AveragePrecision([0.5], absent="ignore").score(match, Criterion())
        1.0
    """

    plot_upper_bound = 1.0

    def __init__(self, thresholds: Sequence[float] | None = None, absent: Literal["zero", "ignore"] = "zero") -> None:
        super().__init__()
        # The very numbers of COCO: 0.5 + 0.05 * 3 would miss an overlap of 0.65.
        self.thresholds = np.linspace(0.5, 0.95, 10).tolist() if thresholds is None else list(thresholds)
        if not self.thresholds or not all(0 <= threshold <= 1 for threshold in self.thresholds):
            raise ValueError(f"AveragePrecision(thresholds={thresholds}): give one or more overlaps between 0 and 1")
        if absent not in ("zero", "ignore"):
            raise ValueError(f"AveragePrecision(absent={absent!r}): must be 'zero' or 'ignore'")
        self.absent = absent

    def score(self, match: Match, criterion: Criterion) -> float:
        """The mean average precision of the answer; the criterion plays no part."""
        if match.num_targets == 0:
            return reward_without_targets(match)
        predicted = np.array([fold_label(label) for label in match.detections.labels], dtype=object)
        true = np.array([fold_label(label) for label in match.targets.labels], dtype=object)
        categories = {*true, *predicted} if self.absent == "zero" else {*true}
        scores = []
        for category in sorted(categories):
            boxes = match.detections.boxes_xyxy[predicted == category][:_MOST]
            overlap = pairwise_iou(boxes, match.targets.boxes_xyxy[true == category])
            scores += [average_precision(overlap, threshold) for threshold in self.thresholds]
        return sum(scores) / len(scores)


def average_precision(overlap: Boxes, threshold: float) -> float:
    """Average precision at one overlap of boxes in the order of their confidence.

    Args:
        overlap: ``[N, M]`` IoU of each predicted with each true box.
        threshold: the overlap from which a box is found.

    Returns:
        0..1; 0 where there is no box of either kind.

    Source: pycocotools.cocoeval (greedy matching, 101 recall points).

    Example:
        >>> round(average_precision(np.array([[0.1, 0.2], [0.9, 0.1], [0.2, 0.7]]), threshold=0.5), 3)
        0.667
    """
    predicted, true = overlap.shape
    if not true:
        return 0.0
    free, hits = overlap.copy(), np.zeros(predicted)
    for row in range(predicted):
        best = true - 1 - int(free[row, ::-1].argmax())  # of equal overlaps the last, as pycocotools takes it
        if free[row, best] >= min(threshold, 1 - 1e-10):
            hits[row] = 1.0
            free[:, best] = -1.0
    found = np.cumsum(hits)
    precision = np.maximum.accumulate((found / np.arange(1, predicted + 1))[::-1])[::-1]
    return float(np.append(precision, 0.0)[np.searchsorted(found / true, _RECALLS)].mean())
