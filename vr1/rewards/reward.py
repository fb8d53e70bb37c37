"""The reward of a completion: one match, read by every term, summed by weight.

Shape letter: n completions.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vr1.errors import UserError
from vr1.matching import BoxMatcher
from vr1.rewards.base import Criterion, RewardTerm
from vr1.rewards.paper import DualFormat, Precision, Recall
from vr1.types import Detections, Match, Targets


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RewardOutput:
    """Rewards of n completions.

    Attributes:
        total: ``[n]`` float32, the weighted sum of the terms.
        terms: ``[n]`` float32 by term, before weighting.
        matches: n matches.
    """

    total: Tensor
    terms: dict[str, Tensor]
    matches: list[Match]


class Reward(nn.Module):
    """The weighted sum of reward terms, all of which read one match per completion.

    Args:
        terms: the terms, by name or as a list, where a term's name is that of its class in snake_case. Dual format,
            recall and precision where left out.
        weights: weight by term name, any finite number; 1 for a term that is not named.
        matcher: assigns predicted to true boxes; box only, by IoU, where left out.
        criterion: the thresholds that the terms are given; the paper's beginner stage where left out. It may be set
            anew at any time: ``reward.criterion = reward.criterion.at_stage("advanced")``.

    Raises:
        UserError: if two terms have one name, a name cannot be used (``total``), or a weight names no term.

    Source: Vision-R1, arXiv 2503.18013, Eq. 7.

    Example:
        >>> from vr1.detections import read_detections
        >>> from vr1.families import Qwen25VL
        >>> from vr1.types import as_boxes
        >>> text = '[{"bbox_2d": [0, 0, 10, 10], "label": "cat"}]'
        >>> found = read_detections(text, Qwen25VL(), image_size=(20, 20), input_size=(20, 20))
        >>> output = Reward()([found], [Targets(boxes_xyxy=as_boxes([0, 0, 10, 6]), labels=("cat",))])
        >>> output.total, output.terms
        (tensor([2.6000]), {'dual_format': tensor([1.]), 'recall': tensor([1.]), 'precision': tensor([0.6000])})
    """

    def __init__(
        self,
        terms: dict[str, RewardTerm] | list[RewardTerm] | None = None,
        weights: dict[str, float] | None = None,
        matcher: BoxMatcher | None = None,
        criterion: Criterion | None = None,
    ) -> None:
        super().__init__()
        named = _by_name([DualFormat(), Recall(), Precision()] if terms is None else terms)
        unknown = sorted(set(weights or {}) - set(named))
        if unknown:
            raise UserError(f"Reward(weights=...): {', '.join(unknown)} is no term; the terms are {', '.join(named)}")
        self.weights = {name: float((weights or {}).get(name, 1.0)) for name in named}
        wrong = [f"{name}: {weight}" for name, weight in self.weights.items() if not abs(weight) < float("inf")]
        if wrong:
            raise UserError(f"Reward(weights=...): {', '.join(wrong)} is no finite number")
        self.terms = nn.ModuleDict(named)
        self.matcher = matcher if matcher is not None else BoxMatcher()
        self.criterion = criterion if criterion is not None else Criterion()

    def forward(self, detections: Sequence[Detections], targets: Sequence[Targets]) -> RewardOutput:
        """Match and reward n completions, each against its own ground truth, in image pixels."""
        assert len(detections) == len(targets), (len(detections), len(targets))
        matches = [self.matcher(found, true) for found, true in zip(detections, targets, strict=True)]
        scores = {name: term(matches, self.criterion) for name, term in self.terms.items()}
        total = torch.zeros(len(matches))
        for name, score in scores.items():
            total = total + self.weights[name] * score
        return RewardOutput(total=total, terms=scores, matches=matches)


def _by_name(terms: dict[str, RewardTerm] | list[RewardTerm]) -> dict[str, RewardTerm]:
    """The terms by name, names checked."""
    if not isinstance(terms, dict):
        names = [re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(term).__name__).lower() for term in terms]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise UserError(f"Reward(terms=[...]): {', '.join(double)} occurs twice; give a mapping of name to term")
        terms = dict(zip(names, terms, strict=True))
    if not terms:
        raise UserError("Reward(terms=...): no term is given; leave the setting out for the paper's three")
    taken = [name for name in terms if name == "total" or not name.isidentifier() or hasattr(nn.ModuleDict, name)]
    if taken:
        raise UserError(f"Reward(terms=...): {', '.join(taken)} cannot name a term; choose another snake_case name")
    return terms
