"""The dual format reward: does the completion follow the template, and is what it says valid?"""

from typing import Literal

from vr1.records import Match
from vr1.rewards.criterion import Criterion
from vr1.rewards.term import RewardTerm


class DualFormat(RewardTerm):
    """1 if the completion follows the template and its content is valid, else 0.

    Args:
        check: ``template_and_content``: the paper's rule. ``template``: the form only (JSON, four numbers to a box),
            and for a prompt without an object 1 less that, as in the released code. There, JSON of any other form
            passes too; here it has to be a list of objects.

    Raises:
        ValueError: if ``check`` is neither.

    Source: Vision-R1, arXiv 2503.18013, Eq. 4.

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.records import Detections, Targets, as_boxes
        >>> outside = Detections(
        ...     boxes_xyxy=as_boxes([0, 0, 9, 9]), labels=("cat",), scores=np.full(1, 0.99),
        ...     well_formed=True, valid=False,
        ... )
        >>> match = BoxMatcher()(outside, Targets(boxes_xyxy=as_boxes([0, 0, 9, 9]), labels=("cat",)))
        >>> DualFormat().score(match, Criterion()), DualFormat(check="template").score(match, Criterion())
        (0.0, 1.0)
    """

    plot_upper_bound = 1.0

    def __init__(self, check: Literal["template_and_content", "template"] = "template_and_content") -> None:
        super().__init__()
        if check not in ("template_and_content", "template"):
            raise ValueError(f"DualFormat(check={check!r}): must be 'template_and_content' or 'template'")
        self.check = check

    def score(self, match: Match, criterion: Criterion) -> float:
        """Eq. 4; the criterion plays no part."""
        if self.check == "template_and_content":
            return float(match.detections.valid)
        return float(match.detections.well_formed == (match.num_targets > 0))
