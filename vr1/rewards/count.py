"""The count reward: as many boxes as there are objects."""

from vr1.records import Match
from vr1.rewards.criterion import Criterion
from vr1.rewards.nothing_to_find import reward_without_targets
from vr1.rewards.term import RewardTerm


class Count(RewardTerm):
    """``1 - |predicted boxes - true boxes| / the larger of the two``, wherever the boxes lie.

    Without an object in the image, an empty and valid answer earns 1 and any other 0.

    Source: ours. V-Triune's released code, github.com/MiniMax-AI/One-RL-to-See-Them-All, reward_server/verify.py,
        multiplies its score by ``0.6 ** |predicted - true boxes|``; here the difference is relative, so that one of
        two and ten of twenty cost the same.

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.records import Detections, Targets, as_boxes
        >>> found = Detections(
        ...     boxes_xyxy=as_boxes([0, 0, 9, 9]), labels=("cat",), scores=np.full(1, 0.99),
        ...     well_formed=True, valid=True,
        ... )
        >>> two = Targets(boxes_xyxy=as_boxes([[40, 40, 50, 50], [60, 0, 70, 9]]), labels=("cat", "cat"))
        >>> Count().score(BoxMatcher()(found, two), Criterion())
        0.5
    """

    plot_upper_bound = 1.0

    def score(self, match: Match, criterion: Criterion) -> float:
        """The smaller number over the larger; the criterion plays no part."""
        if match.num_targets == 0:
            return reward_without_targets(match)
        return min(match.num_predicted, match.num_targets) / max(match.num_predicted, match.num_targets)
