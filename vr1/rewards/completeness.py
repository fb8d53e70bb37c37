"""The completeness reward: nothing missed, nothing made up."""

from vr1.records import Match
from vr1.rewards.criterion import Criterion
from vr1.rewards.nothing_to_find import reward_without_targets
from vr1.rewards.term import RewardTerm


class Completeness(RewardTerm):
    """``1 - (share of true boxes missed + share of predicted boxes made up) / 2``.

    A box is found where its overlap reaches the criterion's ``xi0``. An answer without a box earns 0 where there is
    something to find, although it makes nothing up: saying nothing must not pay. Without an object in the image, an
    empty and valid answer earns 1 and any other 0.

    Source: V-Triune's released code, github.com/MiniMax-AI/One-RL-to-See-Them-All, reward_server/verify.py
        (completeness score: miss and false alarm rate). What an image without objects earns is ours.

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.records import Detections, Targets, as_boxes
        >>> found = Detections(
        ...     boxes_xyxy=as_boxes([0, 0, 9, 9]), labels=("cat",), scores=np.full(1, 0.99),
        ...     well_formed=True, valid=True,
        ... )
        >>> two = Targets(boxes_xyxy=as_boxes([[0, 0, 9, 9], [20, 0, 30, 9]]), labels=("cat", "cat"))
        >>> Completeness().score(BoxMatcher()(found, two), Criterion())
        0.75
    """

    plot_upper_bound = 1.0

    def score(self, match: Match, criterion: Criterion) -> float:
        """One less the mean of the two error rates."""
        if match.num_targets == 0:
            return reward_without_targets(match)
        if match.num_predicted == 0:
            return 0.0
        found = sum(map(criterion.hit, match.overlap.tolist()))
        return (found / match.num_targets + found / match.num_predicted) / 2
