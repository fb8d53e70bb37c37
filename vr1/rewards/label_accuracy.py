"""The label reward: is each matched box named right?"""

from vr1.matching import fold_label
from vr1.records import Match
from vr1.rewards.criterion import Criterion
from vr1.rewards.nothing_to_find import reward_without_targets
from vr1.rewards.term import RewardTerm


class LabelAccuracy(RewardTerm):
    """``matched pairs whose labels agree / matched pairs``, whatever their overlap.

    Labels agree as in `vr1.matching`: case, surrounding blanks and a final full stop aside. Without a pair it is 0;
    without an object in the image, an empty and valid answer earns 1 and any other 0.

    Source: ours in this form. Perception-R1's released code, github.com/linkangheng/PR1, src/open_r1/rewards.py, has a
        class reward over the matched pairs too.

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.records import Detections, Targets, as_boxes
        >>> found = Detections(
        ...     boxes_xyxy=as_boxes([[0, 0, 9, 9], [20, 0, 30, 9]]), labels=("Cat.", "dog"), scores=np.full(2, 0.99),
        ...     well_formed=True, valid=True,
        ... )
        >>> two = Targets(boxes_xyxy=as_boxes([[0, 0, 9, 9], [20, 0, 30, 9]]), labels=("cat", "cat"))
        >>> LabelAccuracy().score(BoxMatcher()(found, two), Criterion())
        0.5
    """

    plot_upper_bound = 1.0

    def score(self, match: Match, criterion: Criterion) -> float:
        """Share of right labels; the criterion plays no part."""
        if match.num_targets == 0:
            return reward_without_targets(match)
        pairs = zip(match.predicted.tolist(), match.target.tolist(), strict=True)
        agree = [fold_label(match.detections.labels[p]) == fold_label(match.targets.labels[t]) for p, t in pairs]
        return sum(agree) / max(len(agree), 1)
