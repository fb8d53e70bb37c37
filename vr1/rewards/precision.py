"""The precision reward: how well does each predicted box fit?"""

from typing import Literal

from vr1.records import Match
from vr1.rewards.criterion import Criterion
from vr1.rewards.nothing_to_find import reward_without_targets
from vr1.rewards.term import RewardTerm


class Precision(RewardTerm):
    """``sum of f(overlap) over the matched pairs / number of boxes``.

    Without an object in the image, an empty and valid answer earns 1 and any other 0.

    Args:
        normalise_by: ``predicted``: all predicted boxes count, so that redundant ones cost. ``matched``: only matched
            ones do, as in the released code.

    Raises:
        ValueError: if ``normalise_by`` is neither.

    Source: Vision-R1, arXiv 2503.18013, Eq. 6.

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.records import Detections, Targets, as_boxes
        >>> found = Detections(
        ...     boxes_xyxy=as_boxes([[0, 0, 9, 9], [20, 0, 30, 9]]), labels=("cat", "cat"),
        ...     scores=np.full(2, 0.99), well_formed=True, valid=True,
        ... )
        >>> match = BoxMatcher()(found, Targets(boxes_xyxy=as_boxes([0, 0, 9, 9]), labels=("cat",)))
        >>> Precision().score(match, Criterion()), Precision(normalise_by="matched").score(match, Criterion())
        (0.5, 1.0)
    """

    plot_upper_bound = 1.0

    def __init__(self, normalise_by: Literal["predicted", "matched"] = "predicted") -> None:
        super().__init__()
        if normalise_by not in ("predicted", "matched"):
            raise ValueError(f"Precision(normalise_by={normalise_by!r}): must be 'predicted' or 'matched'")
        self.normalise_by = normalise_by

    def score(self, match: Match, criterion: Criterion) -> float:
        """Eq. 6: f applies to each matched box."""
        if match.num_targets == 0:
            return reward_without_targets(match)
        if match.num_predicted == 0:
            return 0.0
        boxes = match.num_predicted if self.normalise_by == "predicted" else len(match.overlap)
        return sum(map(criterion.f, match.overlap.tolist())) / boxes
