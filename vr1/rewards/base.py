"""The base of all reward terms, and the criterion: the thresholds that say how good is good enough."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from vr1.errors import UserError
from vr1.types import Match


def reward_without_targets(match: Match) -> float:
    """1 for saying so in the right form, 0 for any box and for anything that cannot be read."""
    return float(match.num_predicted == 0 and match.detections.valid)


Stage = Literal["beginner", "advanced", "off"]


@dataclass(frozen=True)
class Criterion:
    """Thresholds of one stage of progressive rule refinement.

    ``f(x) = 1 if x >= xi2, 0 if x < xi1, else x``; ``xi0`` is the overlap from which a true box counts as recalled.

    Attributes:
        xi0: overlap at which a matched box counts for recall.
        xi1: below this, f is 0.
        xi2: from this on, f is 1.
        strict: reach xi2 and xi0 by ``>`` instead of ``>=``, as the released code does. What lies exactly on a
            threshold then counts as itself.

    Raises:
        UserError: if not ``0 <= xi1 <= xi2 <= 1`` or not ``0 <= xi0 <= 1``.

    Source: Vision-R1, arXiv 2503.18013, section 3.3, Eq. 8.

    Example:
        >>> criterion = Criterion(xi0=0.5, xi1=0.5, xi2=0.75)
        >>> [criterion.f(overlap) for overlap in (0.4, 0.6, 0.8)]
        [0.0, 0.6, 1.0]
        >>> criterion.at_stage("advanced")
        Criterion(xi0=0.75, xi1=0.75, xi2=0.9, strict=False)
    """

    xi0: float = 0.5
    xi1: float = 0.5
    xi2: float = 0.75
    strict: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.xi0 <= 1:
            raise UserError(f"Criterion(xi0={self.xi0}): the overlap for recall must lie in 0..1")
        if not 0 <= self.xi1 <= self.xi2 <= 1:
            raise UserError(f"Criterion(xi1={self.xi1}, xi2={self.xi2}): needs 0 <= xi1 <= xi2 <= 1")

    def f(self, value: float) -> float:
        """Differentiate a value: all, nothing, or the value itself (Eq. 8)."""
        return differentiate(value, self.xi1, self.xi2, self.strict)

    def hit(self, overlap: float) -> float:
        """How far a matched box counts for recall: 1 from xi0 on, else 0."""
        return differentiate(overlap, self.xi0, self.xi0, self.strict)

    def at_stage(self, stage: Stage) -> "Criterion":
        """The thresholds of a named stage, with the comparison of this criterion."""
        return replace(STAGES[stage], strict=self.strict)


def differentiate(value: float, xi1: float, xi2: float, strict: bool = False) -> float:
    """Eq. 8: 0 below xi1, 1 from xi2 on (above it, if ``strict``), the value itself between them."""
    if value < xi1:
        return 0.0
    return 1.0 if value > xi2 or (value == xi2 and not strict) else value


STAGES: dict[Stage, Criterion] = {
    "beginner": Criterion(xi0=0.5, xi1=0.5, xi2=0.75),
    "advanced": Criterion(xi0=0.75, xi1=0.75, xi2=0.9),
    # No differentiation: f is the identity from 0 to 1. Recall still needs an overlap to count boxes at.
    "off": Criterion(xi0=0.5, xi1=0.0, xi2=1.0),
}


class RewardTerm(Metric):
    """One reason to reward a completion. A subclass implements `score` and nothing else.

    Calling a term gives the scores of a batch of n completions as a float32 tensor ``[n]`` on the CPU, where rewards
    are computed. Each call also adds to the running mean that `compute` returns, over all processes, until `reset`;
    ``self.log(name, term)`` in a LightningModule thus logs the mean of the epoch.

    Raises:
        UserError: on calling it, if a score is not a finite number.

    Example:
        A term of your own, used from YAML by ``class_path: my_package.FewBoxes``:

        >>> class FewBoxes(RewardTerm):
        ...     '''Pays less for every further box.'''
        ...
        ...     def __init__(self, halve_after: int = 10) -> None:
        ...         super().__init__()
        ...         self.halve_after = halve_after
        ...
        ...     def score(self, match: Match, criterion: Criterion) -> float:
        ...         return 0.5 ** (match.num_predicted / self.halve_after)
        >>> FewBoxes()([], Criterion())
        tensor([])
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    @abstractmethod
    def score(self, match: Match, criterion: Criterion) -> float:
        """The reward of one completion, given its match and the thresholds of the current stage."""

    def forward(self, matches: Sequence[Match], criterion: Criterion) -> Tensor:
        """Scores ``[n]`` of n completions, which are also added to the running mean."""
        scores = [float(self.score(match, criterion)) for match in matches]
        if not all(map(math.isfinite, scores)):
            raise UserError(f"{type(self).__name__}.score returned {scores}: a reward must be a finite number")
        self.update(scores)
        return torch.tensor(scores, dtype=torch.float32)

    def update(self, scores: Sequence[float]) -> None:
        """Add scores to the running mean."""
        # Not in place: states made in inference mode (a validation's reset) are then still usable in training.
        self.total = self.total + sum(scores)
        self.count = self.count + len(scores)

    def compute(self) -> Tensor:
        """Mean score since the last `reset`; 0 if there was none."""
        return self.total / self.count.clamp(min=1)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the mean, or the given values over time; see `torchmetrics.Metric.plot`."""
        return self._plot(val, ax)
