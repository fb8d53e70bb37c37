"""The length reward: a completion that rambles earns less."""

from vr1.records import Match
from vr1.rewards.criterion import Criterion
from vr1.rewards.term import RewardTerm


class Length(RewardTerm):
    """1 up to ``full_until`` characters, 0 from ``none_from`` on, falling in a straight line between them.

    Characters, since a term reads the text; a token of English or of JSON has about three of them.

    Args:
        full_until: number of characters up to which length costs nothing.
        none_from: number of characters from which nothing is left.

    Raises:
        ValueError: if not ``0 <= full_until < none_from``.

    Source: DAPO, arXiv 2503.14476, Eq. 13 (soft overlong punishment; there -1..0 and in tokens).

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.records import Detections, Targets, as_boxes
        >>> found = Detections(
        ...     boxes_xyxy=as_boxes([]), labels=(), scores=np.zeros(0), well_formed=False, valid=False,
        ...     completion="x" * 300,
        ... )
        >>> match = BoxMatcher()(found, Targets(boxes_xyxy=as_boxes([]), labels=()))
        >>> Length(full_until=200, none_from=400).score(match, Criterion())
        0.5
    """

    plot_upper_bound = 1.0

    def __init__(self, full_until: int = 1000, none_from: int = 1500) -> None:
        super().__init__()
        if not 0 <= full_until < none_from:
            raise ValueError(
                f"Length(full_until={full_until}, none_from={none_from}): needs 0 <= full_until < none_from"
            )
        self.full_until, self.none_from = full_until, none_from

    def score(self, match: Match, criterion: Criterion) -> float:
        """What is left; the criterion plays no part."""
        left = (self.none_from - len(match.detections.completion)) / (self.none_from - self.full_until)
        return min(max(left, 0.0), 1.0)
