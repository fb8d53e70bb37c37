"""InternVL: tiles of one size, a plain language model with positions of one axis."""

from typing import Any

from torch import Tensor

from vr1.policy.architectures.base import Architecture
from vr1.prompts import PromptBatch


class InternVL(Architecture):
    """InternVL, around whichever language model its config names."""

    axes = 1

    def positions(self, base: Any, prompts: PromptBatch) -> Tensor:
        """Places ``[1, B, P]`` of the tokens in their prompt."""
        return (prompts.mask.long().cumsum(1) - 1).clamp(min=0)[None]

    def position_ids(self, positions: Tensor) -> Tensor:
        """Places ``[B, L]``: the language model knows no axes."""
        return positions[0]
