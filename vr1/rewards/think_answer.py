"""The reasoning format reward: does the completion think first and answer then?"""

import re

from vr1.records import Match
from vr1.rewards.criterion import Criterion
from vr1.rewards.term import RewardTerm

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_FORM = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)


class ThinkAnswer(RewardTerm):
    """1 if the whole completion is ``<think>...</think> <answer>...</answer>``, each tag once, else 0.

    What is inside is not looked at. `vr1.rewards.DualFormat` asks for an answer without reasoning: use one or the
    other.

    Source: DeepSeek-R1, arXiv 2501.12948, section 2.2.2 (format reward); VLM-R1, arXiv 2504.07615.

    Example:
        >>> import numpy as np
        >>> from vr1.matching import BoxMatcher
        >>> from vr1.records import Detections, Targets, as_boxes
        >>> found = Detections(
        ...     boxes_xyxy=as_boxes([]), labels=(), scores=np.zeros(0), well_formed=False, valid=False,
        ...     completion="<think>I see none.</think><answer>[]</answer>",
        ... )
        >>> ThinkAnswer().score(BoxMatcher()(found, Targets(boxes_xyxy=as_boxes([]), labels=())), Criterion())
        1.0
    """

    plot_upper_bound = 1.0

    def score(self, match: Match, criterion: Criterion) -> float:
        """All or nothing; the criterion plays no part."""
        text = match.detections.completion
        return float(all(text.count(tag) == 1 for tag in _TAGS) and _FORM.fullmatch(text) is not None)
