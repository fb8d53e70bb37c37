"""The plain overlap reward: how well do the boxes lie, with no threshold at all?"""

from typing import Literal

from vr1.records import Match
from vr1.rewards.criterion import Criterion
from vr1.rewards.nothing_to_find import reward_without_targets
from vr1.rewards.term import RewardTerm


class Iou(RewardTerm):
    """``sum of the overlaps of the matched pairs / number of boxes``, a negative overlap (GIoU) counting as 0.

    For one true and one predicted box this is their IoU. Without an object in the image, an empty and valid answer
    earns 1 and any other 0.

    Args:
        normalise_by: ``larger``: predicted or true boxes, whichever are more, so that redundant and missing ones cost
            alike. ``matched``: the matched pairs only.

    Raises:
        ValueError: if ``normalise_by`` is neither.

    Source: VLM-R1, arXiv 2504.07615 (referring expressions: one box of each).

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.records import Detections, Targets, as_boxes
        >>> found = Detections(
        ...     boxes_xyxy=as_boxes([[0, 0, 10, 5], [20, 0, 30, 9]]), labels=("cat", "cat"),
        ...     scores=np.full(2, 0.99), well_formed=True, valid=True,
        ... )
        >>> match = BoxMatcher()(found, Targets(boxes_xyxy=as_boxes([0, 0, 10, 10]), labels=("cat",)))
        >>> Iou().score(match, Criterion()), Iou(normalise_by="matched").score(match, Criterion())
        (0.25, 0.5)
    """

    plot_upper_bound = 1.0

    def __init__(self, normalise_by: Literal["larger", "matched"] = "larger") -> None:
        super().__init__()
        if normalise_by not in ("larger", "matched"):
            raise ValueError(f"Iou(normalise_by={normalise_by!r}): must be 'larger' or 'matched'")
        self.normalise_by = normalise_by

    def score(self, match: Match, criterion: Criterion) -> float:
        """The mean overlap; the criterion plays no part."""
        if match.num_targets == 0:
            return reward_without_targets(match)
        larger = max(match.num_predicted, match.num_targets)
        boxes = larger if self.normalise_by == "larger" else max(len(match.overlap), 1)
        return float(match.overlap.clip(min=0.0).sum()) / boxes
