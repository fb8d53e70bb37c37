"""Rewards that count: missed and invented boxes, the number of boxes, and the labels."""

from vr1.matching import fold_label
from vr1.rewards.base import Criterion, RewardTerm, reward_without_targets
from vr1.types import Match


class Completeness(RewardTerm):
    """``1 - (miss rate + false-alarm rate) / 2``.

    The miss rate is the share of true boxes, the false-alarm rate the share of predicted boxes, that have no match with
    an overlap of at least the criterion's ``xi0``. An answer without boxes earns 0 where the image has objects,
    although it has no false alarm: an empty answer must not pay. Without an object in the image, an empty and valid
    answer earns 1 and any other 0.

    Source: V-Triune's released code, github.com/MiniMax-AI/One-RL-to-See-Them-All, reward_server/verify.py
        (completeness score: miss and false-alarm rate). The rule for images without objects is ours.

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.types import Detections, Targets, as_boxes
        >>> detections = Detections(
        ...     boxes_xyxy=as_boxes([0, 0, 9, 9]), labels=("cat",), scores=np.full(1, 0.99),
        ...     well_formed=True, valid=True,
        ... )
        >>> two = Targets(boxes_xyxy=as_boxes([[0, 0, 9, 9], [20, 0, 30, 9]]), labels=("cat", "cat"))
        >>> Completeness().score(BoxMatcher()(detections, two), Criterion())
        0.75
    """

    plot_upper_bound = 1.0

    def score(self, match: Match, criterion: Criterion) -> float:
        """1 minus the mean of the two error rates."""
        if match.num_targets == 0:
            return reward_without_targets(match)
        if match.num_predicted == 0:
            return 0.0
        hits = sum(map(criterion.hit, match.overlap.tolist()))
        return (hits / match.num_targets + hits / match.num_predicted) / 2


class Count(RewardTerm):
    """``1 - |predicted boxes - true boxes| / max(predicted boxes, true boxes)``, whatever their position.

    Without an object in the image, an empty and valid answer earns 1 and any other 0.

    Source: ours. V-Triune's released code, github.com/MiniMax-AI/One-RL-to-See-Them-All, reward_server/verify.py,
        multiplies its score by ``0.6 ** |predicted - true boxes|``; here the difference is relative: one of two and
        ten of twenty earn the same.

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.types import Detections, Targets, as_boxes
        >>> detections = Detections(
        ...     boxes_xyxy=as_boxes([0, 0, 9, 9]), labels=("cat",), scores=np.full(1, 0.99),
        ...     well_formed=True, valid=True,
        ... )
        >>> two = Targets(boxes_xyxy=as_boxes([[40, 40, 50, 50], [60, 0, 70, 9]]), labels=("cat", "cat"))
        >>> Count().score(BoxMatcher()(detections, two), Criterion())
        0.5
    """

    plot_upper_bound = 1.0

    def score(self, match: Match, criterion: Criterion) -> float:
        """The smaller number over the larger; the criterion is not used."""
        if match.num_targets == 0:
            return reward_without_targets(match)
        return min(match.num_predicted, match.num_targets) / max(match.num_predicted, match.num_targets)


class LabelAccuracy(RewardTerm):
    """``matched pairs whose labels agree / matched pairs``, whatever their overlap.

    Labels agree as in `vr1.matching`: ignoring case, surrounding spaces and a final full stop. It is 0 without a pair;
    without an object in the image, an empty and valid answer earns 1 and any other 0.

    Source: ours in this form. Perception-R1's released code, github.com/linkangheng/PR1, src/open_r1/rewards.py, has a
        class reward over the matched pairs too.

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.types import Detections, Targets, as_boxes
        >>> detections = Detections(
        ...     boxes_xyxy=as_boxes([[0, 0, 9, 9], [20, 0, 30, 9]]), labels=("Cat.", "dog"), scores=np.full(2, 0.99),
        ...     well_formed=True, valid=True,
        ... )
        >>> two = Targets(boxes_xyxy=as_boxes([[0, 0, 9, 9], [20, 0, 30, 9]]), labels=("cat", "cat"))
        >>> LabelAccuracy().score(BoxMatcher()(detections, two), Criterion())
        0.5
    """

    plot_upper_bound = 1.0

    def score(self, match: Match, criterion: Criterion) -> float:
        """Share of right labels; the criterion is not used."""
        if match.num_targets == 0:
            return reward_without_targets(match)
        pairs = zip(match.predicted.tolist(), match.target.tolist(), strict=True)
        agree = [fold_label(match.detections.labels[p]) == fold_label(match.targets.labels[t]) for p, t in pairs]
        return sum(agree) / max(len(agree), 1)
