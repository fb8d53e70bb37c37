"""The functions of ``decoding.c``, for float32 tensors on a CPU.

Shape letters: B prompts, P prompt tokens, W slots of a prompt, R rows, H query heads, K key and value heads, E head
width, T capacity for own tokens, D width, V vocabulary.
"""

import ctypes
from functools import cache

import torch
from torch import Tensor

from vr1.cpu_kernels.library import load_library

__all__ = ["attend", "gated", "padded", "rms_norm", "sample"]

_POINTER, _SIZE, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
_ARGUMENTS = {
    "rms_norm": [_POINTER] * 3 + [_SIZE] * 2 + [_NUMBER],
    "gated": [_POINTER, _SIZE] * 2 + [_POINTER] + [_SIZE] * 3,
    "attend": [_POINTER] * 11 + [_SIZE] * 9 + [_NUMBER, _SIZE],
    "sample": [_POINTER] * 6 + [_SIZE] * 2 + [_NUMBER, _SIZE],
}
# As in decoding.c: keys are read in blocks of so many.
_BLOCK = 16
# Likewise: of the vocabulary, as many tokens are summed at a time.
_VOCABULARY_BLOCK = 256
# A task has about so many queries, whose scores stay in a core's own cache.
_QUERIES = 32


@cache
def _functions() -> ctypes.CDLL:
    library = load_library("decoding.c")
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library


def padded(tokens: int) -> int:
    """Prompt tokens that `attend` reads keys of: a multiple of 16."""
    return -(-tokens // _BLOCK) * _BLOCK


def rms_norm(states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """``x * rsqrt(mean(x^2) + epsilon) * weight``.

    Args:
        states: ``[R, D]`` contiguous.
        weight: ``[D]`` contiguous.
        epsilon: added to the mean.

    Example:
        >>> rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
        tensor([[0.8485, 2.2627]])
    """
    output = torch.empty_like(states)
    _functions().rms_norm(
        states.data_ptr(), weight.data_ptr(), output.data_ptr(), len(states), states.shape[1], epsilon
    )
    return output


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``.

    Args:
        gate: ``[R, D]``, contiguous in the last dimension.
        up: likewise.

    Example:
        >>> gated(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 2.0]]))
        tensor([[0.0000, 1.4621]])
    """
    rows, width = gate.shape
    output = gate.new_empty(rows, width)
    _functions().gated(
        gate.data_ptr(), gate.stride(0), up.data_ptr(), up.stride(0), output.data_ptr(), rows, width,
        torch.get_num_threads(),
    )  # fmt: skip
    return output


def attend(
    heads: Tensor,
    cosine: Tensor,
    sine: Tensor,
    prompt_keys: Tensor,
    prompt_values: Tensor,
    first_token: Tensor,
    row_of_slot: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    slot: int,
    scaling: float,
) -> Tensor:
    """Attention of one new token of each row to its prompt and to its own tokens; stores its key and value.

    All tensors are contiguous, and float32 unless said otherwise.

    Args:
        heads: ``[R, H + 2 * K, E]``, queries, keys and values, not rotated.
        cosine: ``[R, E]`` of the rotary positions.
        sine: ``[R, E]``, its first half negated.
        prompt_keys: ``[B * K, E, padded(P)]``, padded with anything behind P.
        prompt_values: ``[B * K, P, E]``.
        first_token: ``[B]`` int64, the first token of each prompt that is no padding.
        row_of_slot: ``[B * W]`` int64, the row that is stored in each slot; -1 for none.
        own_keys: ``[B * K * W, E, T]``, T a multiple of 16; changed in place.
        own_values: ``[B * K * W, T, E]``; changed in place.
        slot: where the new token is stored, in [0, T); it is the last that is read.
        scaling: factor of the scores.

    Returns:
        ``[R, H * E]``.
    """
    parts = heads, cosine, sine, prompt_keys, prompt_values, own_keys, own_values, first_token, row_of_slot
    assert all(part.is_contiguous() for part in parts)
    rows, total, width = heads.shape
    prompts, pairs = len(first_token), len(prompt_keys)
    kv_heads, slots = pairs // prompts, len(row_of_slot) // prompts
    query_heads, capacity = total - 2 * kv_heads, own_keys.shape[2]
    of_key = query_heads // kv_heads
    threads = torch.get_num_threads()
    at_a_time = min(max(1, _QUERIES // of_key), -(-slots // -(-threads // pairs)))
    tasks = pairs * -(-slots // at_a_time)
    scratch = heads.new_empty(tasks * at_a_time * of_key * (2 * width + prompt_keys.shape[2] + capacity + 1))
    output = heads.new_empty(rows, query_heads * width)
    _functions().attend(
        heads.data_ptr(), cosine.data_ptr(), sine.data_ptr(), prompt_keys.data_ptr(), prompt_values.data_ptr(),
        first_token.data_ptr(), row_of_slot.data_ptr(), own_keys.data_ptr(), own_values.data_ptr(),
        scratch.data_ptr(), output.data_ptr(),
        prompts, prompt_values.shape[1], slots, query_heads, kv_heads, width, capacity, slot, at_a_time,
        scaling, threads,
    )  # fmt: skip
    return output


def sample(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token per row by inverting the cumulative distribution, as `vr1.rollout.sampling.sample_token` does.

    Args:
        logits: ``[R, V]`` float32 contiguous; -inf for a token that is never sampled.
        uniform: ``[R]`` float64 contiguous, in [0, 1).
        temperature: above 0.

    Returns:
        Tokens ``[R]`` int64 and their log-probabilities ``[R]`` float32; 0 and NaN where a logit is NaN or
        infinite, or all are -inf.

    Example:
        >>> tokens, log_probs = sample(torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([0.7]).double(), 1.0)
        >>> tokens, log_probs.exp()
        (tensor([1]), tensor([0.5000]))
    """
    rows, size = logits.shape
    weights, tokens, log_probs = (
        torch.empty_like(logits),
        logits.new_empty(rows, dtype=torch.long),
        logits.new_empty(rows),
    )
    sums = logits.new_empty(rows, -(-size // _VOCABULARY_BLOCK), dtype=torch.double)
    _functions().sample(
        logits.data_ptr(), uniform.data_ptr(), weights.data_ptr(), sums.data_ptr(), tokens.data_ptr(),
        log_probs.data_ptr(), rows, size, temperature, torch.get_num_threads(),
    )  # fmt: skip
    return tokens, log_probs
