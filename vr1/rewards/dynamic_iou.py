"""The dynamic IoU reward: an overlap counts only from a threshold on, which rises while training goes on."""

from vr1.records import Match
from vr1.rewards.criterion import Criterion
from vr1.rewards.nothing_to_find import reward_without_targets
from vr1.rewards.term import RewardTerm


class DynamicIou(RewardTerm):
    """``sum of the overlaps that reach xi0 / number of predicted or true boxes, whichever are more``.

    The threshold is the criterion's ``xi0``, so it moves with the stages of ``callbacks.RuleRefinement`` and no step
    number is written here; ``configs/rewards/dynamic_iou.yaml`` gives the stages of the source. Without an object in
    the image, an empty and valid answer earns 1 and any other 0.

    Source: V-Triune, arXiv 2505.18129; its released code, github.com/MiniMax-AI/One-RL-to-See-Them-All,
        reward_server/verify.py (0.85, 0.95 after 10 % of the steps, 0.99 after 25 %). There the sum is divided by the
        number of true boxes and multiplied by ``0.6 ** |predicted - true boxes|``; to divide by the larger number is
        ours.

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.records import Detections, Targets, as_boxes
        >>> found = Detections(
        ...     boxes_xyxy=as_boxes([0, 0, 10, 9]), labels=("cat",), scores=np.full(1, 0.99),
        ...     well_formed=True, valid=True,
        ... )
        >>> match = BoxMatcher()(found, Targets(boxes_xyxy=as_boxes([0, 0, 10, 10]), labels=("cat",)))
        >>> [DynamicIou().score(match, Criterion(xi0=threshold)) for threshold in (0.85, 0.95)]
        [0.9, 0.0]
    """

    plot_upper_bound = 1.0

    def score(self, match: Match, criterion: Criterion) -> float:
        """The overlaps that reach ``xi0``, over the larger number of boxes."""
        if match.num_targets == 0:
            return reward_without_targets(match)
        counted = sum(overlap for overlap in match.overlap.tolist() if criterion.hit(overlap) and overlap > 0)
        return counted / max(match.num_predicted, match.num_targets)
