"""The settings that memory depends on."""

from dataclasses import dataclass
from typing import Any

from vr1.policy.loading import PolicySource

# As Lightning names precisions: what is computed with, and whether weights are kept wider than that.
_HALF = {"bf16": "bfloat16", "16": "float16"}


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a training asks for.

    Args:
        policy: the model, and how it is loaded.
        prompts: prompts in a forward, on each process (``data.batch_size``).
        group_size: completions of a prompt.
        completion_tokens: tokens of a completion, the limit at worst.
        max_prompt_tokens: longest prompt that is accepted.
        reference: whether a reference is kept (``loss.kl_coef`` above 0).
        optimizer: takes (name, parameter) pairs.
        precision: the trainer's.
        processes: processes that work together.
        sharded: whether they divide the model among them (FSDP); if not, each has all of it.
        offload: whether shards lie in the host's memory.
        categories: categories that a prompt names.
    """

    policy: PolicySource
    prompts: int
    group_size: int
    completion_tokens: int
    max_prompt_tokens: int
    reference: bool
    optimizer: Any
    precision: str = "32-true"
    processes: int = 1
    sharded: bool = False
    offload: bool = False
    categories: int = 10

    @property
    def mixed(self) -> bool:
        """Whether weights are wider than what is computed with."""
        return self.precision.endswith("-mixed") and self.precision.split("-")[0] in _HALF

    @property
    def compute_dtype(self) -> str:
        """The precision of activations, a name of torch's."""
        kind, _, way = self.precision.partition("-")
        return _HALF[kind] if way in ("mixed", "true") and kind in _HALF else self.policy.dtype
