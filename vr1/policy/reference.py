"""The reference policy: where training began, to measure how far the policy has gone."""

import copy

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from vr1.policy.policy import Policy
from vr1.prompts import PromptBatch


class Reference:
    """The policy as it was before training.

    With adapters it is the policy itself with the adapters off, which costs no memory; without, a frozen copy. The copy
    is deliberately not part of the module's parameters: it is neither trained nor stored in checkpoints.

    Args:
        policy: the policy before its first update.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._copy: nn.Module | None = None
        if not policy.has_adapters:
            self._copy = copy.deepcopy(policy).eval().requires_grad_(False)

    @property
    def copy(self) -> nn.Module | None:
        """The frozen copy, for a strategy that divides it among processes; None where adapters are switched off."""
        return self._copy

    @torch.no_grad()
    def log_probs(self, prompts: PromptBatch, tokens: Tensor, mask: Tensor, temperature: float) -> Tensor:
        """Log-probs ``[B, G, C]`` of the completions under the reference; shapes as in `Policy.log_probs`."""
        if self._copy is not None:
            if not isinstance(self._copy, FSDPModule):
                self._copy.to(tokens.device)
            return self._copy.log_probs(prompts, tokens, mask, temperature)[0]  # type: ignore[operator]
        with self._policy.without_adapters():
            return self._policy.log_probs(prompts, tokens, mask, temperature)[0]
