"""The three rewards of the paper: dual format, recall and precision.

Source: Vision-R1, arXiv 2503.18013, section 3.2.
"""

from typing import Literal

from vr1.errors import UserError
from vr1.rewards.base import Criterion, RewardTerm, differentiate, reward_without_targets
from vr1.types import Match


class DualFormat(RewardTerm):
    """1 if the completion follows the template and its content is valid, else 0.

    Args:
        check: ``template_and_content`` is the paper's rule. ``template`` checks the form only (a JSON list of objects,
            four numbers to a box); for a prompt without an object it returns 1 minus that, as the released code does,
            which also accepts other JSON.

    Raises:
        UserError: ``check`` is neither.

    Source: Vision-R1, arXiv 2503.18013, Eq. 4.

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.types import Detections, Targets, as_boxes
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
            raise UserError(f"DualFormat(check={check!r}): must be 'template_and_content' or 'template'")
        self.check = check

    def score(self, match: Match, criterion: Criterion) -> float:
        """Eq. 4; the criterion is not used."""
        if self.check == "template_and_content":
            return float(match.detections.valid)
        return float(match.detections.well_formed == (match.num_targets > 0))


class Recall(RewardTerm):
    """``f(number of matched pairs with overlap >= xi0 / M)``, where M is the number of true boxes.

    Without an object in the image, an empty and valid answer earns 1 and any other 0.

    Args:
        xi1: lower threshold of f in every stage; None takes that of the current criterion.
        xi2: upper threshold of f in every stage; None takes that of the current criterion. The released code fixes 0.5
            and 0.75 when it differentiates.

    Raises:
        UserError: only one of them is given, or not ``0 <= xi1 <= xi2 <= 1``.

    Source: Vision-R1, arXiv 2503.18013, Eq. 5.

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.types import Detections, Targets, as_boxes
        >>> detections = Detections(
        ...     boxes_xyxy=as_boxes([0, 0, 9, 9]), labels=("cat",), scores=np.full(1, 0.99),
        ...     well_formed=True, valid=True,
        ... )
        >>> two = Targets(boxes_xyxy=as_boxes([[0, 0, 9, 9], [20, 0, 30, 9]]), labels=("cat", "cat"))
        >>> Recall().score(BoxMatcher()(detections, two), Criterion(xi0=0.5, xi1=0.5, xi2=0.75))
        0.5
    """

    plot_upper_bound = 1.0

    def __init__(self, xi1: float | None = None, xi2: float | None = None) -> None:
        super().__init__()
        if (xi1 is None) != (xi2 is None):
            raise UserError(f"Recall(xi1={xi1}, xi2={xi2}): give both thresholds or neither")
        self.fixed = None if xi1 is None or xi2 is None else Criterion(xi1=xi1, xi2=xi2)

    def score(self, match: Match, criterion: Criterion) -> float:
        """Eq. 5: f of the recall of the completion."""
        if match.num_targets == 0:
            return reward_without_targets(match)
        hits = sum(map(criterion.hit, match.overlap.tolist()))
        thresholds = self.fixed or criterion
        return differentiate(hits / match.num_targets, thresholds.xi1, thresholds.xi2, criterion.strict)


class Precision(RewardTerm):
    """``sum of f(overlap) over the matched pairs / number of boxes``.

    Without an object in the image, an empty and valid answer earns 1 and any other 0.

    Args:
        normalise_by: ``predicted`` divides by the number of predicted boxes, so that redundant boxes cost. ``matched``
            divides by the number of matched pairs, as in the released code.

    Raises:
        UserError: ``normalise_by`` is neither.

    Source: Vision-R1, arXiv 2503.18013, Eq. 6.

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.types import Detections, Targets, as_boxes
        >>> detections = Detections(
        ...     boxes_xyxy=as_boxes([[0, 0, 9, 9], [20, 0, 30, 9]]), labels=("cat", "cat"),
        ...     scores=np.full(2, 0.99), well_formed=True, valid=True,
        ... )
        >>> match = BoxMatcher()(detections, Targets(boxes_xyxy=as_boxes([0, 0, 9, 9]), labels=("cat",)))
        >>> Precision().score(match, Criterion()), Precision(normalise_by="matched").score(match, Criterion())
        (0.5, 1.0)
    """

    plot_upper_bound = 1.0

    def __init__(self, normalise_by: Literal["predicted", "matched"] = "predicted") -> None:
        super().__init__()
        if normalise_by not in ("predicted", "matched"):
            raise UserError(f"Precision(normalise_by={normalise_by!r}): must be 'predicted' or 'matched'")
        self.normalise_by = normalise_by

    def score(self, match: Match, criterion: Criterion) -> float:
        """Eq. 6: f of the overlap of each matched box."""
        if match.num_targets == 0:
            return reward_without_targets(match)
        if match.num_predicted == 0:
            return 0.0
        boxes = match.num_predicted if self.normalise_by == "predicted" else len(match.overlap)
        return sum(map(criterion.f, match.overlap.tolist())) / boxes
