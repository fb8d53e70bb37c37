"""How many completions fit in the memory of a GPU at the same time.

Shape letters: P prompt tokens, G group size, C completion tokens, V vocabulary.
"""

from typing import Any

import torch

from vr1.policy.free_memory import SHARE, free_bytes
from vr1.policy.policy import Policy
from vr1.prompts import PromptBatch
from vr1.rollout.cache import cache_capacity
from vr1.rollout.sampling import Sampling, sampling_bytes

__all__ = ["bytes_per_token", "group_bytes", "rows_in", "rows_that_fit"]


def rows_that_fit(policy: Policy, prompts: PromptBatch, sampling: Sampling, reserved: float = 0.0) -> int | None:
    """Completions that can be decoded at the same time on the policy's device.

    Args:
        policy: with the weights that decoding needs in place.
        prompts: B prompts, on the policy's device.
        sampling: group size, top-p and length limit.
        reserved: bytes that decoding will take beside the rows, as for dequantized weights.

    Returns:
        Their number, on a GPU by its free memory; None on a CPU: no limit.
    """
    device = prompts.tokens.device
    if device.type != "cuda" or not policy.shares_prompt:
        return None
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else policy.base.dtype
    return rows_in(free_bytes(device) - reserved, policy, prompts.tokens.shape[1], sampling, dtype)


def rows_in(free: float, policy: Policy, width: int, sampling: Sampling, dtype: torch.dtype) -> int:
    """Completions that can be decoded at the same time in some memory; those of one prompt at least.

    Args:
        free: bytes that decoding can take.
        policy: a policy that shares prompts.
        width: P.
        sampling: group size, top-p and length limit.
        dtype: precision of the forward.
    """
    groups = int(SHARE * max(0.0, free) / group_bytes(policy, width, sampling, dtype))
    return max(1, groups) * sampling.group_size


def group_bytes(policy: Policy, width: int, sampling: Sampling, dtype: torch.dtype) -> float:
    """Memory of one prompt and its completions while they are sampled, without weights.

    The parts are those of ``vr1 plan``: keys and values, of the prompt twice, since they are copied to the layout of
    decoding, and of the completions at their limit; the logits of a token, with what sampling makes of them; and, where
    it is more than these, the prefill.

    Args:
        policy: a policy that shares prompts.
        width: P.
        sampling: group size, top-p and length limit.
        dtype: precision of the forward.
    """
    config = policy.base.config.get_text_config()
    of_token = bytes_per_token(config, dtype)
    group, growing = sampling.group_size, 1 + 1 / config.num_hidden_layers
    cache = 2 * width * of_token + group * cache_capacity(sampling.max_new_tokens) * of_token * growing
    logits = sampling_bytes(group, config.vocab_size, sampling)
    # Hidden states in and between the layers, queries and their like, and three products of the feed-forward part.
    widths = 6 * config.hidden_size + 2 * config.num_attention_heads * _head_size(config) + 3 * config.intermediate_size
    prefill = width * (of_token + widths * dtype.itemsize)
    return float(max(cache + logits, prefill))


def bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one token, in all layers.

    Args:
        config: of the language model.
        dtype: precision of keys and values.

    Example:
        >>> from vr1.policy import PolicySource
        >>> bytes_per_token(PolicySource().config().get_text_config(), torch.float32)
        2560
    """
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * _head_size(config) * dtype.itemsize)


def _head_size(config: Any) -> int:
    # Models of which it does not follow from the other sizes say it.
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
