"""What one rollout leaves behind for the updates that are made from it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vr1.records import DetectionRecord, Prefix


@dataclass(kw_only=True, slots=True, eq=False)
class Experience:
    """Completions with all that does not change while the policy is updated on them.

    Shape letters: B prompts, G group size, C completion tokens.

    Attributes:
        tokens: ``[B, G, C]`` int64.
        mask: ``[B, G, C]`` bool, true on tokens that count for the loss.
        advantages: ``[B, G]`` float32.
        reference_log_probs: ``[B, G, C]`` float32, or None without a reference.
        old_log_probs: ``[B, G, C]`` float32 of the policy that sampled; None until its first forward.
        prefix: what that policy made of the prompts, with its graph, for the first update alone; not stored.
    """

    tokens: Tensor
    mask: Tensor
    advantages: Tensor
    reference_log_probs: Tensor | None
    old_log_probs: Tensor | None = None
    prefix: Prefix | None = None

    def take_prefix(self) -> Prefix | None:
        """The prefix, which is good for one backward."""
        prefix, self.prefix = self.prefix, None
        return prefix

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors on the CPU for a checkpoint."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "prefix"}
        return {name: None if value is None else value.detach().cpu() for name, value in values.items()}

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> "Experience":
        """The experience that `state_dict` described, on ``device``."""
        moved: dict[str, Any] = {name: None if value is None else value.to(device) for name, value in state.items()}
        return cls(**moved)


@dataclass(kw_only=True, slots=True, eq=False)
class JudgedGroups:
    """The newest completions as people read them, for callbacks that show them.

    Shape letters: B prompts, G group size.

    Attributes:
        records: B records.
        instructions: B texts of the question.
        input_sizes: B (width, height) pairs, pixels of the image as the model sees it.
        texts: B lists of G completions.
        rewards: ``[B, G]`` float32, the weighted sum of the terms.
        terms: ``[B, G]`` float32 by term, before weighting.
        advantages: ``[B, G]`` float32.
    """

    records: list[DetectionRecord]
    instructions: list[str]
    input_sizes: list[tuple[int, int]]
    texts: list[list[str]]
    rewards: Tensor
    terms: dict[str, Tensor]
    advantages: Tensor

    def __len__(self) -> int:
        return len(self.records)
