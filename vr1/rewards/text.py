"""Rewards of the text: its length, and reasoning before the answer."""

import re

from vr1.errors import UserError
from vr1.rewards.base import Criterion, RewardTerm
from vr1.types import Match


class Length(RewardTerm):
    """1 up to ``full_until`` characters, 0 at ``none_from`` and above, linear in between.

    The length is in characters, since a term reads the text; a token of English or JSON has about three characters.

    Args:
        full_until: largest number of characters that earns 1.
        none_from: smallest number of characters that earns 0.

    Raises:
        UserError: not ``0 <= full_until < none_from``.

    Source: DAPO, arXiv 2503.14476, Eq. 13 (soft overlong punishment; there -1..0 and in tokens).

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.types import Detections, Targets, as_boxes
        >>> detections = Detections(
        ...     boxes_xyxy=as_boxes([]), labels=(), scores=np.zeros(0), well_formed=False, valid=False,
        ...     completion="x" * 300,
        ... )
        >>> match = BoxMatcher()(detections, Targets(boxes_xyxy=as_boxes([]), labels=()))
        >>> Length(full_until=200, none_from=400).score(match, Criterion())
        0.5
    """

    plot_upper_bound = 1.0

    def __init__(self, full_until: int = 1000, none_from: int = 1500) -> None:
        super().__init__()
        if not 0 <= full_until < none_from:
            raise UserError(
                f"Length(full_until={full_until}, none_from={none_from}): needs 0 <= full_until < none_from"
            )
        self.full_until, self.none_from = full_until, none_from

    def score(self, match: Match, criterion: Criterion) -> float:
        """Linear in the number of characters, clipped to 0..1; the criterion is not used."""
        score = (self.none_from - len(match.detections.completion)) / (self.none_from - self.full_until)
        return min(max(score, 0.0), 1.0)


_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_FORM = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)


class ThinkAnswer(RewardTerm):
    """1 if the whole completion is ``<think>...</think> <answer>...</answer>``, each tag once, else 0.

    The text inside the tags is not checked. `vr1.rewards.DualFormat` requires an answer without reasoning: use one of
    the two.

    Source: DeepSeek-R1, arXiv 2501.12948, section 2.2.2 (format reward); VLM-R1, arXiv 2504.07615.

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.types import Detections, Targets, as_boxes
        >>> detections = Detections(
        ...     boxes_xyxy=as_boxes([]), labels=(), scores=np.zeros(0), well_formed=False, valid=False,
        ...     completion="<think>I see none.</think><answer>[]</answer>",
        ... )
        >>> ThinkAnswer().score(BoxMatcher()(detections, Targets(boxes_xyxy=as_boxes([]), labels=())), Criterion())
        1.0
    """

    plot_upper_bound = 1.0

    def score(self, match: Match, criterion: Criterion) -> float:
        """1 or 0; the criterion is not used."""
        text = match.detections.completion
        return float(all(text.count(tag) == 1 for tag in _TAGS) and _FORM.fullmatch(text) is not None)
