"""The base class of reward terms, and the criterion: the thresholds of the current stage.

Shape letter: n completions.
"""

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
    """Reward where the image has no object of the question: 1 for an empty and valid answer, 0 for any other."""
    return float(match.num_predicted == 0 and match.detections.valid)


Stage = Literal["beginner", "advanced", "off"]


@dataclass(frozen=True)
class Criterion:
    """Thresholds of one stage of progressive rule refinement.

    ``f(x) = 1 if x >= xi2, 0 if x < xi1, else x``; a true box is recalled if its overlap is at least ``xi0``.

    Attributes:
        xi0: smallest overlap at which a matched box counts for recall.
        xi1: f is 0 below this.
        xi2: f is 1 at this and above.
        strict: compare with xi2 and xi0 by ``>`` instead of ``>=``, as the released code does. A value equal to the
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
        """``f`` of Eq. 8: 0, 1, or the value itself."""
        return differentiate(value, self.xi1, self.xi2, self.strict)

    def hit(self, overlap: float) -> float:
        """Whether a matched box counts for recall: 1 if its overlap reaches xi0, else 0."""
        return differentiate(overlap, self.xi0, self.xi0, self.strict)

    def at_stage(self, stage: Stage) -> "Criterion":
        """The thresholds of a named stage, with this criterion's ``strict``."""
        return replace(STAGES[stage], strict=self.strict)


def differentiate(value: float, xi1: float, xi2: float, strict: bool = False) -> float:
    """Eq. 8: 0 below xi1, 1 at xi2 and above (only above, if ``strict``), the value itself between them."""
    if value < xi1:
        return 0.0
    return 1.0 if value > xi2 or (value == xi2 and not strict) else value


STAGES: dict[Stage, Criterion] = {
    "beginner": Criterion(xi0=0.5, xi1=0.5, xi2=0.75),
    "advanced": Criterion(xi0=0.75, xi1=0.75, xi2=0.9),
    # No differentiation: f is the identity on 0..1. Recall still needs a threshold of the overlap.
    "off": Criterion(xi0=0.5, xi1=0.0, xi2=1.0),
}


class MeanScore(Metric):
    """Mean of scores since the last `reset`, over all completions of all processes.

    Calling it adds scores and returns their mean, as torchmetrics do: ``self.log(name, metric)`` in a LightningModule
    logs that value for a step, and the mean of everything since the last `reset` for an epoch. With several processes
    both are over the completions of all of them.

    Example:
        >>> mean = MeanScore()
        >>> mean(torch.tensor([1.0, 0.0])), mean(torch.tensor([1.0]))
        (tensor(0.5000), tensor(1.))
        >>> mean.compute()
        tensor(0.6667)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__(dist_sync_on_step=True)
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor) -> None:
        """Add scores, of any shape, on the CPU: there a sum needs no synchronisation with a GPU."""
        # Not in place: a state that a validation has reset, in inference mode, can then be updated in training.
        self.total = self.total + float(scores.sum())
        self.count = self.count + scores.numel()

    def compute(self) -> Tensor:
        """Mean score since the last `reset`; 0 without any score."""
        return self.total / self.count.clamp(min=1)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the mean, or the given values over time; see `torchmetrics.Metric.plot`."""
        return self._plot(val, ax)


class RewardTerm(MeanScore):
    """One reason to reward a completion. A subclass implements `score` and nothing else.

    A term computes scores and is a metric of them: `scores` has no side effect, and calling the term with scores adds
    them to its mean. Training adds those of each rollout that it trains on, so a module can log a term for each epoch;
    for each step the mean is logged as ``reward/``, with the name of the term.

    Example:
        A term of your own, used from YAML by ``class_path: my_package.FewBoxes``:

        >>> class FewBoxes(RewardTerm):
        ...     '''Halves the reward for every ``halve_after`` boxes.'''
        ...
        ...     def __init__(self, halve_after: int = 10) -> None:
        ...         super().__init__()
        ...         self.halve_after = halve_after
        ...
        ...     def score(self, match: Match, criterion: Criterion) -> float:
        ...         return 0.5 ** (match.num_predicted / self.halve_after)
        >>> FewBoxes().scores([], Criterion())
        tensor([])
    """

    plot_lower_bound = 0.0

    @abstractmethod
    def score(self, match: Match, criterion: Criterion) -> float:
        """The reward of one completion.

        Args:
            match: its detections and true boxes, in image pixels, and which belong together.
            criterion: the thresholds of the current stage.

        Returns:
            A finite number, by custom 0..1.
        """

    def scores(self, matches: Sequence[Match], criterion: Criterion) -> Tensor:
        """Scores of n completions, float32 ``[n]`` on the CPU.

        Raises:
            UserError: a score is not a finite number.
        """
        scores = [float(self.score(match, criterion)) for match in matches]
        if not all(map(math.isfinite, scores)):
            raise UserError(f"{type(self).__name__}.score returned {scores}: a reward must be a finite number")
        return torch.tensor(scores, dtype=torch.float32)
