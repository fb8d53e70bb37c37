"""The recall reward: how much of what is in the image did the completion find?"""

from vr1.records import Match
from vr1.rewards.criterion import Criterion, differentiate
from vr1.rewards.nothing_to_find import reward_without_targets
from vr1.rewards.term import RewardTerm


class Recall(RewardTerm):
    """``f(number of matched pairs with overlap >= xi0 / M)``, M being the number of true boxes.

    Without an object in the image, an empty and valid answer earns 1 and any other 0.

    Args:
        xi1: keeps f's lower threshold at this value in every stage; the criterion's own where left out.
        xi2: keeps f's upper threshold likewise. The released code keeps 0.5 and 0.75 once it differentiates at all.

    Raises:
        ValueError: if only one of them is given, or not ``0 <= xi1 <= xi2 <= 1``.

    Source: Vision-R1, arXiv 2503.18013, Eq. 5.

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.records import Detections, Targets, as_boxes
        >>> found = Detections(
        ...     boxes_xyxy=as_boxes([0, 0, 9, 9]), labels=("cat",), scores=np.full(1, 0.99),
        ...     well_formed=True, valid=True,
        ... )
        >>> two = Targets(boxes_xyxy=as_boxes([[0, 0, 9, 9], [20, 0, 30, 9]]), labels=("cat", "cat"))
        >>> Recall().score(BoxMatcher()(found, two), Criterion(xi0=0.5, xi1=0.5, xi2=0.75))
        0.5
    """

    plot_upper_bound = 1.0

    def __init__(self, xi1: float | None = None, xi2: float | None = None) -> None:
        super().__init__()
        if (xi1 is None) != (xi2 is None):
            raise ValueError(f"Recall(xi1={xi1}, xi2={xi2}): give both thresholds or neither")
        self.kept = None if xi1 is None or xi2 is None else Criterion(xi1=xi1, xi2=xi2)

    def score(self, match: Match, criterion: Criterion) -> float:
        """Eq. 5: f applies once, to the recall of the completion."""
        if match.num_targets == 0:
            return reward_without_targets(match)
        hits = sum(map(criterion.hit, match.overlap.tolist()))
        thresholds = self.kept or criterion
        return differentiate(hits / match.num_targets, thresholds.xi1, thresholds.xi2, criterion.strict)
