"""Rewards of the overlap other than the paper's: plain IoU, dynamic IoU, and average precision of one answer.

Shape letters: N predicted and M true boxes of one category.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from vr1.boxes import pairwise_iou
from vr1.errors import UserError
from vr1.matching import fold_label
from vr1.rewards.base import Criterion, RewardTerm, reward_without_targets
from vr1.types import Boxes, Match


class Iou(RewardTerm):
    """``sum of the overlaps of the matched pairs / number of boxes``, a negative overlap (GIoU) counting as 0.

    For one true and one predicted box this is their IoU. Without an object in the image, an empty and valid answer
    earns 1 and any other 0.

    Args:
        normalise_by: ``larger`` divides by the larger of the numbers of predicted and true boxes, so that redundant
            and missing boxes cost the same. ``matched`` divides by the number of matched pairs.

    Raises:
        UserError: ``normalise_by`` is neither.

    Source: VLM-R1, arXiv 2504.07615 (referring expressions: one box of each).

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.types import Detections, Targets, as_boxes
        >>> detections = Detections(
        ...     boxes_xyxy=as_boxes([[0, 0, 10, 5], [20, 0, 30, 9]]), labels=("cat", "cat"),
        ...     scores=np.full(2, 0.99), well_formed=True, valid=True,
        ... )
        >>> match = BoxMatcher()(detections, Targets(boxes_xyxy=as_boxes([0, 0, 10, 10]), labels=("cat",)))
        >>> Iou().score(match, Criterion()), Iou(normalise_by="matched").score(match, Criterion())
        (0.25, 0.5)
    """

    plot_upper_bound = 1.0

    def __init__(self, normalise_by: Literal["larger", "matched"] = "larger") -> None:
        super().__init__()
        if normalise_by not in ("larger", "matched"):
            raise UserError(f"Iou(normalise_by={normalise_by!r}): must be 'larger' or 'matched'")
        self.normalise_by = normalise_by

    def score(self, match: Match, criterion: Criterion) -> float:
        """The mean overlap; the criterion is not used."""
        if match.num_targets == 0:
            return reward_without_targets(match)
        larger = max(match.num_predicted, match.num_targets)
        boxes = larger if self.normalise_by == "larger" else max(len(match.overlap), 1)
        return float(match.overlap.clip(min=0.0).sum()) / boxes


class DynamicIou(RewardTerm):
    """``sum of the overlaps >= xi0 / max(predicted boxes, true boxes)``.

    The threshold is the criterion's ``xi0``, which the stages of ``callbacks.RuleRefinement`` raise during training;
    ``configs/rewards/dynamic_iou.yaml`` gives the stages of the source. Without an object in the image, an empty and
    valid answer earns 1 and any other 0.

    Source: V-Triune, arXiv 2505.18129; its released code, github.com/MiniMax-AI/One-RL-to-See-Them-All,
        reward_server/verify.py (0.85, 0.95 after 10 % of the steps, 0.99 after 25 %). There the sum is divided by the
        number of true boxes and multiplied by ``0.6 ** |predicted - true boxes|``; dividing by the larger number is
        ours.

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.types import Detections, Targets, as_boxes
        >>> detections = Detections(
        ...     boxes_xyxy=as_boxes([0, 0, 10, 9]), labels=("cat",), scores=np.full(1, 0.99),
        ...     well_formed=True, valid=True,
        ... )
        >>> match = BoxMatcher()(detections, Targets(boxes_xyxy=as_boxes([0, 0, 10, 10]), labels=("cat",)))
        >>> [DynamicIou().score(match, Criterion(xi0=threshold)) for threshold in (0.85, 0.95)]
        [0.9, 0.0]
    """

    plot_upper_bound = 1.0

    def score(self, match: Match, criterion: Criterion) -> float:
        """Sum of the overlaps of at least ``xi0``, over the larger number of boxes."""
        if match.num_targets == 0:
            return reward_without_targets(match)
        counted = sum(overlap for overlap in match.overlap.tolist() if criterion.hit(overlap))
        return counted / max(match.num_predicted, match.num_targets)


_RECALLS = np.linspace(0.0, 1.0, 101)
_MAX_BOXES = 100  # boxes of one category that COCO evaluates


class AveragePrecision(RewardTerm):
    """Mean over categories and thresholds of the average precision of one answer.

    All boxes of an answer have the same score, so they are ranked in the order in which they were written: the most
    certain first earns most. The term matches greedily by category, as COCO does, and uses only the boxes and labels of
    the shared match. Without an object in the image, an empty and valid answer earns 1 and any other 0.

    Args:
        thresholds: IoU thresholds; ``[0.5]`` is VLM-R1's. None takes COCO's ten, 0.5 to 0.95.
        absent: precision of a predicted category that is not in the image: ``zero``, so that invented labels cost, or
            ``ignore``, which leaves the category out of the mean as COCO does.

    Raises:
        UserError: a threshold is not in 0..1, there is none, or ``absent`` is neither.

    Source: VLM-R1, github.com/om-ai-lab/VLM-R1, ``map_reward``; pycocotools.cocoeval.

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.types import Detections, Targets, as_boxes
        >>> detections = Detections(
        ...     boxes_xyxy=as_boxes([[0, 0, 10, 8], [40, 0, 50, 9]]), labels=("cat", "dog"), scores=np.full(2, 0.99),
        ...     well_formed=True, valid=True,
        ... )
        >>> match = BoxMatcher()(detections, Targets(boxes_xyxy=as_boxes([0, 0, 10, 10]), labels=("cat",)))
        >>> round(AveragePrecision().score(match, Criterion()), 2)
        0.35
        >>> AveragePrecision([0.5], absent="ignore").score(match, Criterion())
        1.0
    """

    plot_upper_bound = 1.0

    def __init__(self, thresholds: Sequence[float] | None = None, absent: Literal["zero", "ignore"] = "zero") -> None:
        super().__init__()
        # Exactly COCO's numbers: 0.5 + 0.05 * 3 is larger than 0.65.
        self.thresholds = np.linspace(0.5, 0.95, 10).tolist() if thresholds is None else list(thresholds)
        if not self.thresholds or not all(0 <= threshold <= 1 for threshold in self.thresholds):
            raise UserError(f"AveragePrecision(thresholds={thresholds}): give at least one IoU threshold in 0..1")
        if absent not in ("zero", "ignore"):
            raise UserError(f"AveragePrecision(absent={absent!r}): must be 'zero' or 'ignore'")
        self.absent = absent

    def score(self, match: Match, criterion: Criterion) -> float:
        """The mean average precision of the answer; the criterion is not used."""
        if match.num_targets == 0:
            return reward_without_targets(match)
        predicted = np.array([fold_label(label) for label in match.detections.labels], dtype=object)
        true = np.array([fold_label(label) for label in match.targets.labels], dtype=object)
        categories = {*true, *predicted} if self.absent == "zero" else {*true}
        scores = []
        for category in sorted(categories):
            boxes = match.detections.boxes_xyxy[predicted == category][:_MAX_BOXES]
            overlap = pairwise_iou(boxes, match.targets.boxes_xyxy[true == category])
            scores += [average_precision(overlap, threshold) for threshold in self.thresholds]
        return sum(scores) / len(scores)


def average_precision(overlap: Boxes, threshold: float) -> float:
    """Average precision at one IoU threshold.

    Args:
        overlap: ``[N, M]`` float64 IoU of each predicted box, most confident first, with each true box.
        threshold: smallest IoU at which a predicted box is a true positive.

    Returns:
        0..1; 0 without predicted or without true boxes.

    Source: pycocotools.cocoeval (greedy matching, 101 recall points).

    Example:
        >>> round(average_precision(np.array([[0.1, 0.2], [0.9, 0.1], [0.2, 0.7]]), threshold=0.5), 3)
        0.667
    """
    predicted, true = overlap.shape
    if not true:
        return 0.0
    unmatched, hits = overlap.copy(), np.zeros(predicted)
    for row in range(predicted):
        best = true - 1 - int(unmatched[row, ::-1].argmax())  # the last of equal overlaps, as in pycocotools
        if unmatched[row, best] >= min(threshold, 1 - 1e-10):
            hits[row] = 1.0
            unmatched[:, best] = -1.0
    true_positives = np.cumsum(hits)
    precision = np.maximum.accumulate((true_positives / np.arange(1, predicted + 1))[::-1])[::-1]
    return float(np.append(precision, 0.0)[np.searchsorted(true_positives / true, _RECALLS)].mean())
