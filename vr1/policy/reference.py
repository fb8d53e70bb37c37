"""The reference policy: the policy as it was before training, to measure how far training has moved it."""

import copy

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from vr1.errors import UserError
from vr1.policy.policy import Policy
from vr1.prompts import PromptBatch


def copies_weights(policy: Policy) -> bool:
    """Whether the reference of a policy is a copy: with adapters it is the policy with the adapters switched off."""
    return not policy.has_adapters


def common_weights(policy: Policy) -> dict[str, nn.Parameter]:
    """The weights that a copy as reference has in common with its policy, by name: those that are not trained.

    A frozen vision tower is there once, for example. Buffers are not among them: layers may change theirs in training.
    """
    return {name: weight for name, weight in policy.named_parameters() if not weight.requires_grad}


class Reference:
    """The policy as it was before training.

    With adapters it is the policy itself with the adapters switched off, which costs no memory; without adapters it is
    a frozen copy of the weights that are trained, and has the others in common with the policy. The copy is not
    registered as a submodule: it is neither trained nor saved in checkpoints.

    Args:
        policy: the policy before its first update.

    Raises:
        UserError: a policy whose weights are sharded already, which cannot be copied: a validation of the same module
            with FSDP came before its training.

    Example:
        >>> from vr1.policy import PolicySource
        >>> policy = PolicySource(freeze_vision=True).load()
        >>> [copied] = Reference(policy).policies()
        >>> copied.base.model.visual.merger.mlp[0].weight is policy.base.model.visual.merger.mlp[0].weight
        True
        >>> copied.base.lm_head.weight is policy.base.lm_head.weight
        False
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._copy: Policy | None = None
        self._common: list[str] = []
        if copies_weights(policy):
            if isinstance(policy, FSDPModule):
                raise UserError(
                    "loss.kl_coef above 0 needs a copy of the weights before they are sharded, and an earlier run of"
                    " this module has sharded them: train with a new module, or make its fit the first run"
                )
            common = common_weights(policy)
            self._common = list(common)
            # The same parameters, not others of the same memory: where the policy moves, the copy does too.
            kept = {id(weight): weight for weight in common.values()}
            self._copy = copy.deepcopy(policy, kept).eval().requires_grad_(False)

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

        Raises:
            UserError: a weight is trained that was frozen when the reference was made.
        """
        if self._copy is None:
            with self._policy.without_adapters():
                return self._policy.log_probs(prompts, tokens, mask, temperature)[0]
        self._check_common()
        if not isinstance(self._copy, FSDPModule):
            # The copy is no submodule, so Lightning does not move it; a sharded one is where its shards belong.
            self._copy.to(tokens.device)
        return self._copy.log_probs(prompts, tokens, mask, temperature)[0]

    def _check_common(self) -> None:
        """Raise an error where a weight is trained that the copy has in common with the policy."""
        present = common_weights(self._policy)
        trained = [name for name in self._common if name not in present]
        if trained:
            raise UserError(
                f"{trained[0]} is trained now, and was frozen when the reference was made, which therefore has no copy"
                f" of it ({len(trained)} such weights); train it from the start, or set loss.kl_coef to 0"
            )
