"""A reward term: one score per completion, and its running mean as a torchmetrics metric."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from vr1.records import Match
from vr1.rewards.criterion import Criterion


class RewardTerm(Metric):
    """One reason to reward a completion. A subclass implements `score` and nothing else.

    Calling a term gives the scores of a batch of n completions as a float32 tensor ``[n]`` on the CPU, where rewards
    are computed. Each call also adds to the running mean that `compute` returns, over all processes, until `reset`;
    ``self.log(name, term)`` in a LightningModule thus logs the mean of the epoch.

    Raises:
        ValueError: on calling it, if a score is not a finite number.

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
            raise ValueError(f"{type(self).__name__}.score returned {scores}: a reward must be a finite number")
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
