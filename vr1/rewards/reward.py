"""The reward of a completion: the weighted sum of terms, all of which read one match.

Shape letter: n completions.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vr1.boxes import BoxRules
from vr1.errors import UserError
from vr1.matching import BoxMatcher
from vr1.rewards.base import STAGES, Criterion, MeanScore, RewardTerm, Stage
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

    `match` and `score` are its two stages; calling it does both. Neither changes any state: `update_means` does.

    Args:
        terms: the terms, by name or as a list; a term of a list is named after its class in snake_case. None takes
            dual format, recall and precision.
        weights: weight by term name, any finite number; 1 for a term that is not named.
        matcher: assigns predicted to true boxes; None assigns by IoU alone.
        criterion: thresholds for the terms; None takes the paper's beginner stage. It can be replaced at any time:
            ``reward.criterion = reward.criterion.at_stage("advanced")``.
        box_rules: what becomes of boxes outside the image, and of swapped corners, when answers are read for these
            rewards; None clips and orders them.
        stages: the named stages that these rewards have; None for all of them.

    Attributes:
        terms: the terms by name, each a metric of its own scores.
        total: metric of the total reward.

    Raises:
        UserError: two terms have the same name, a name cannot be used (``total``), or a weight names no term.

    Source: Vision-R1, arXiv 2503.18013, Eq. 7.

    Example:
        >>> from vr1.detections import read_detections
        >>> from vr1.families import Qwen25VL
        >>> from vr1.types import as_boxes
        >>> text = '[{"bbox_2d": [0, 0, 10, 10], "label": "cat"}]'
        >>> detections = read_detections(text, Qwen25VL(), image_size=(20, 20), input_size=(20, 20))
        >>> output = Reward()([detections], [Targets(boxes_xyxy=as_boxes([0, 0, 10, 6]), labels=("cat",))])
        >>> output.total, output.terms
        (tensor([2.6000]), {'dual_format': tensor([1.]), 'recall': tensor([1.]), 'precision': tensor([0.6000])})
    """

    def __init__(
        self,
        terms: dict[str, RewardTerm] | list[RewardTerm] | None = None,
        weights: dict[str, float] | None = None,
        matcher: BoxMatcher | None = None,
        criterion: Criterion | None = None,
        box_rules: BoxRules | None = None,
        stages: Sequence[Stage] | None = None,
    ) -> None:
        super().__init__()
        named = _by_name([DualFormat(), Recall(), Precision()] if terms is None else terms)
        unknown = sorted(set(weights or {}) - set(named))
        if unknown:
            raise UserError(
                f"Reward(weights=...): {', '.join(unknown)} names no term; the terms are {', '.join(named)}"
            )
        self.weights = {name: float((weights or {}).get(name, 1.0)) for name in named}
        wrong = [f"{name}: {weight}" for name, weight in self.weights.items() if not math.isfinite(weight)]
        if wrong:
            raise UserError(f"Reward(weights=...): {', '.join(wrong)} is not a finite number")
        self.terms = nn.ModuleDict(named)
        self.total = MeanScore()
        self.matcher = matcher if matcher is not None else BoxMatcher()
        self.criterion = criterion if criterion is not None else Criterion()
        self.box_rules = box_rules if box_rules is not None else BoxRules()
        self.stages: tuple[Stage, ...] = tuple(STAGES) if stages is None else tuple(stages)

    def set_stage(self, stage: Stage) -> None:
        """Take the thresholds of a named stage.

        Raises:
            UserError: these rewards do not have the stage.
        """
        if stage not in self.stages:
            raise UserError(
                f"stage {stage}: these rewards have {' and '.join(self.stages)}; leave the stage out, or name rewards"
                " that have it"
            )
        self.criterion = self.criterion.at_stage(stage)

    def named_terms(self) -> Iterator[tuple[str, RewardTerm]]:
        """The terms with their names, in the order of the settings."""
        for name, term in self.terms.items():
            assert isinstance(term, RewardTerm)
            yield name, term

    def match(self, detections: Sequence[Detections], targets: Sequence[Targets]) -> list[Match]:
        """Match each of n completions to its own ground truth, in image pixels."""
        return [self.matcher(predicted, true) for predicted, true in zip(detections, targets, strict=True)]

    def score(self, matches: list[Match]) -> RewardOutput:
        """Rewards of n matched completions under the current criterion."""
        scores = {name: term.scores(matches, self.criterion) for name, term in self.named_terms()}
        total = torch.zeros(len(matches))
        for name, score in scores.items():
            total = total + self.weights[name] * score
        return RewardOutput(total=total, terms=scores, matches=matches)

    def forward(self, detections: Sequence[Detections], targets: Sequence[Targets]) -> RewardOutput:
        """Match and reward n completions, each against its own ground truth, in image pixels."""
        return self.score(self.match(detections, targets))

    def update_means(self, total: Tensor, terms: dict[str, Tensor]) -> dict[str, MeanScore]:
        """Add rewards to the metrics, which have their means since the last reset, such as those of an epoch.

        Args:
            total: the total rewards, of any shape, on the CPU.
            terms: the scores of each term, of the same shape.

        Returns:
            The updated metrics by name: ``total``, and the terms in their order.
        """
        self.total.update(total)
        for name, term in self.named_terms():
            term.update(terms[name])
        return {"total": self.total, **dict(self.named_terms())}


def _by_name(terms: dict[str, RewardTerm] | list[RewardTerm]) -> dict[str, RewardTerm]:
    """The terms by name, after a check of the names."""
    if not isinstance(terms, dict):
        names = [re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(term).__name__).lower() for term in terms]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise UserError(f"Reward(terms=[...]): {', '.join(repeated)} occurs twice; give a mapping of name to term")
        terms = dict(zip(names, terms, strict=True))
    if not terms:
        raise UserError("Reward(terms=...): no term is given; leave the setting out for the paper's three")
    reserved = [name for name in terms if name == "total" or not name.isidentifier() or hasattr(nn.ModuleDict, name)]
    if reserved:
        raise UserError(f"Reward(terms=...): {', '.join(reserved)} cannot name a term; choose another snake_case name")
    return terms
