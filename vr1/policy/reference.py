"""The reference policy: the policy as it was before training, to measure how far training has moved it."""

import copy

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from vr1.policy.policy import Policy
from vr1.prompts import PromptBatch


def copies_weights(policy: Policy) -> bool:
    """Whether the reference of a policy is a copy: with adapters it is the policy with the adapters switched off."""
    return not policy.has_adapters


class Reference:
    """The policy as it was before training.

    With adapters it is the policy itself with the adapters switched off, which costs no memory; without adapters it is
    a frozen copy. The copy is not registered as a submodule: it is neither trained nor saved in checkpoints.

    Args:
        policy: the policy before its first update.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._copy: Policy | None = None
        if copies_weights(policy):
            self._copy = copy.deepcopy(policy).eval().requires_grad_(False)

    def policies(self) -> list[Policy]:
        """The frozen copy, which a strategy may shard; nothing where the adapters are switched off instead."""
        return [] if self._copy is None else [self._copy]

    @torch.no_grad()
    def log_probs(self, prompts: PromptBatch, tokens: Tensor, mask: Tensor, temperature: float) -> Tensor:
        """Log-probs of the completions under the reference.

        Args:
            prompts: B prompts.
            tokens: ``[B, G, C]`` int64.
            mask: ``[B, G, C]`` bool, true on the tokens that count.
            temperature: the temperature that the tokens were sampled with.

        Returns:
            ``[B, G, C]`` float32, 0 outside the mask.
        """
        if self._copy is None:
            with self._policy.without_adapters():
                return self._policy.log_probs(prompts, tokens, mask, temperature)[0]
        if not isinstance(self._copy, FSDPModule):
            # The copy is no submodule, so Lightning does not move it; a sharded one is where its shards belong.
            self._copy.to(tokens.device)
        return self._copy.log_probs(prompts, tokens, mask, temperature)[0]
