"""Rewards -> advantages: how much better a completion is than the others of its group.

Shape letters: B prompts, G group size.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vr1.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Advantage:
    """Centre rewards on the mean of their group, and scale them.

    ``A = (r - mean_group) / (std + epsilon)``. In a zero-variance group, whose rewards are all equal, every advantage
    is 0: it does not contribute to the policy gradient.

    Args:
        scale: which standard deviation to divide by: that of the ``group`` (GRPO), that of the ``batch``, or ``none``
            (Dr. GRPO, which shows that dividing by the group's gives more weight to very easy and very hard prompts).
        epsilon: added to the standard deviation.

    Raises:
        UserError: negative ``epsilon``.

    Example:
        >>> Advantage()(torch.tensor([[1.0, 3.0], [2.0, 2.0]]))
        tensor([[-0.7071,  0.7071],
                [ 0.0000,  0.0000]])
        >>> Advantage(scale="none")(torch.tensor([[1.0, 3.0]]))
        tensor([[-1.,  1.]])

    Source: Vision-R1, arXiv 2503.18013, Eq. 1 (its released code adds 1e-4 to the standard deviation);
    Dr. GRPO, arXiv 2503.20783.
    """

    scale: Literal["group", "batch", "none"] = "group"
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        if self.epsilon < 0:
            raise UserError(f"advantage: epsilon={self.epsilon} must not be negative")

    def __call__(self, rewards: Tensor) -> Tensor:
        """Advantages ``[B, G]`` of rewards ``[B, G]``."""
        centred = rewards - rewards.mean(dim=1, keepdim=True)
        # A rounding error of the mean, divided by a tiny deviation, must not become an advantage.
        centred = centred.masked_fill(zero_variance_groups(rewards)[:, None], 0.0)
        if self.scale == "none":
            return centred
        deviation = rewards.std(dim=1, keepdim=True) if self.scale == "group" else rewards.std()
        return centred / (deviation + self.epsilon).clamp(min=torch.finfo(rewards.dtype).tiny)


def zero_variance_groups(rewards: Tensor) -> Tensor:
    """Which groups have rewards that are all equal.

    Args:
        rewards: ``[B, G]``.

    Returns:
        ``[B]`` bool.

    Example:
        >>> zero_variance_groups(torch.tensor([[1.0, 3.0], [2.0, 2.0]])).tolist()
        [False, True]
    """
    return rewards.amax(dim=1) == rewards.amin(dim=1)
