"""The attention of one new token in three kernels, for prompts that a group of completions shares.

Torch's operators need sixteen launches a layer for it, and products with an odd number of prompt tokens are slow. Here
one kernel rotates queries and keys and stores keys and values; one multiplies all queries of a group with the keys of
their prompt, split among blocks of the prompt, which alone would keep a few processors busy; and one adds each row's
own tokens to what these have found. As everywhere in a rollout, scores and sums are float32.

How many tokens are stored is read on the device: only these are read, and a graph of the step stays valid.

Shape letters: B prompts, P prompt tokens, W slots of a prompt, R rows, H query heads, K key and value heads, E head
width, G = H / K, N splits of a prompt.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["attend", "rotate_and_store"]

# Queries to a prompt, and keys, that a program multiplies at a time.
_QUERIES, _KEYS = 64, 32
# A prompt is split until there are about so many programs: those of a large GPU.
_PROGRAMS, _MOST_SPLITS = 128, 16
# The smallest side of a product.
_LEAST = 16


@triton.jit(do_not_specialize=["slots"])
def _rotate_and_store(
    heads, cosine, sine, query, own, slot_of_row, slot,
    row_stride, slots, capacity, values_at,
    H: tl.constexpr, K: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Of one row and head: a query is rotated, a key rotated and stored, a value stored."""
    row, head = tl.program_id(0), tl.program_id(1)
    place = tl.arange(0, E)
    source = heads + row * row_stride + head * E
    part = tl.load(source + place).to(tl.float32)
    if head < H + K:
        swapped = tl.load(source + (place + E // 2) % E).to(tl.float32)
        angle = row * E + place
        part = part * tl.load(cosine + angle).to(tl.float32) + swapped * tl.load(sine + angle).to(tl.float32)
    if head < H:
        tl.store(query + (row * H + head) * E + place, part.to(query.dtype.element_ty))
    else:
        which = tl.load(slot_of_row + row)
        prompt, slot_in_prompt = which // slots, which % slots
        kv_head = (head - H) % K
        sequence = ((prompt * K + kv_head) * slots + slot_in_prompt).to(tl.int64)
        token = sequence * capacity + tl.load(slot)
        if head >= H + K:
            token += values_at // E
        tl.store(own + token * E + place, part.to(own.dtype.element_ty))


# Not compiled anew for prompts of other lengths.
@triton.jit(do_not_specialize=["slots", "prompt_length", "split_length"])
def _attend_prompts(
    query, keys, values, start, row_of_slot, found, largest, total,
    scaling, slots, prompt_length, split_length,
    H: tl.constexpr, K: tl.constexpr, E: tl.constexpr, N: tl.constexpr, EXACT: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Of one prompt and key head, one split of its tokens and one block of queries: their part of the attention."""
    pair, split, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    G: tl.constexpr = H // K
    prompt, kv_head = pair // K, pair % K
    place = tl.arange(0, E)
    number = block * QUERIES + tl.arange(0, QUERIES)
    slot, head = number // G, kv_head * G + number % G
    row = tl.load(row_of_slot + prompt * slots + slot, mask=slot < slots, other=-1)
    queries = tl.load(query + (row * H + head)[:, None] * E + place[None, :], mask=(row >= 0)[:, None], other=0.0)
    queries = queries.to(keys.dtype.element_ty)
    first_seen = tl.load(start + prompt)
    base = pair.to(tl.int64) * prompt_length
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    weight = tl.zeros([QUERIES], tl.float32)
    result = tl.zeros([QUERIES, E], tl.float32)
    begin = split * split_length
    for first in range(begin, tl.minimum(begin + split_length, prompt_length), KEYS):
        token = first + tl.arange(0, KEYS)
        inside = token < prompt_length
        address = (base + token) * E
        key = tl.load(keys + address[None, :] + place[:, None], mask=inside[None, :], other=0.0)
        scores = tl.dot(queries, key, input_precision=EXACT) * scaling
        scores = tl.where((inside & (token >= first_seen))[None, :], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        # Nothing seen yet: no difference of infinities.
        level = tl.where(higher == float("-inf"), 0.0, higher)
        share = tl.exp(scores - level[:, None])
        fade = tl.exp(highest - level)
        value = tl.load(values + address[:, None] + place[None, :], mask=inside[:, None], other=0.0)
        result = result * fade[:, None] + tl.dot(share.to(value.dtype), value, input_precision=EXACT)
        weight = weight * fade + tl.sum(share, 1)
        highest = higher
    index = (pair * N + split) * slots * G + number
    tl.store(largest + index, highest, mask=slot < slots)
    tl.store(total + index, weight, mask=slot < slots)
    tl.store(found + index[:, None] * E + place[None, :], result, mask=(slot < slots)[:, None])


@triton.jit(do_not_specialize=["slots"])
def _attend_own(
    query, own, slot_of_row, slot, found, largest, total, output,
    scaling, slots, capacity, values_at,
    H: tl.constexpr, K: tl.constexpr, E: tl.constexpr, N: tl.constexpr, EXACT: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Of one row and key head: attention to its own tokens, joined with that to its prompt."""
    row, kv_head = tl.program_id(0), tl.program_id(1)
    G: tl.constexpr = H // K
    place, number = tl.arange(0, E), tl.arange(0, QUERIES)
    used = number < G
    at = (row * H + kv_head * G + number)[:, None] * E + place[None, :]
    queries = tl.load(query + at, mask=used[:, None], other=0.0).to(own.dtype.element_ty)
    which = tl.load(slot_of_row + row)
    prompt, slot_in_prompt = which // slots, which % slots
    pair = prompt * K + kv_head
    base = (pair * slots + slot_in_prompt).to(tl.int64) * capacity
    tokens = tl.load(slot) + 1
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    weight = tl.zeros([QUERIES], tl.float32)
    result = tl.zeros([QUERIES, E], tl.float32)
    for first in range(0, tokens, KEYS):
        token = first + tl.arange(0, KEYS)
        seen = token < tokens
        address = (base + token) * E
        key = tl.load(own + address[None, :] + place[:, None], mask=seen[None, :], other=0.0)
        scores = tl.dot(queries, key, input_precision=EXACT) * scaling
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        share = tl.exp(scores - higher[:, None])
        fade = tl.exp(highest - higher)
        value = tl.load(own + values_at + address[:, None] + place[None, :], mask=seen[:, None], other=0.0)
        result = result * fade[:, None] + tl.dot(share.to(value.dtype), value, input_precision=EXACT)
        weight = weight * fade + tl.sum(share, 1)
        highest = higher
    index = pair * N * slots * G + slot_in_prompt * G + number
    level = highest
    for split in tl.static_range(N):
        level = tl.maximum(level, tl.load(largest + index + split * slots * G, mask=used, other=float("-inf")))
    fade = tl.exp(highest - level)
    weight, result = weight * fade, result * fade[:, None]
    for split in tl.static_range(N):
        other = index + split * slots * G
        fade = tl.exp(tl.load(largest + other, mask=used, other=float("-inf")) - level)
        weight += fade * tl.load(total + other, mask=used, other=0.0)
        part = tl.load(found + other[:, None] * E + place[None, :], mask=used[:, None], other=0.0)
        result += fade[:, None] * part
    tl.store(output + at, (result / weight[:, None]).to(output.dtype.element_ty), mask=used[:, None])


def rotate_and_store(
    heads: Tensor, cosine: Tensor, sine: Tensor, own: Tensor, slot_of_row: Tensor, slot: Tensor
) -> Tensor:
    """Rotate queries and keys of a new token, and store its keys and values.

    Args:
        heads: ``[R, H + 2 * K, E]``, queries, keys and values; the last two dimensions are contiguous.
        cosine: ``[R, E]`` of the rotary positions.
        sine: ``[R, E]``, its first half negated.
        own: ``[2, B, K, W, capacity, E]``, keys then values; changed in place.
        slot_of_row: ``[R]`` int32, where the row is stored: prompt * W + slot.
        slot: ``[1]`` int64, where the token is stored.

    Returns:
        Rotated queries ``[R, H, E]``.
    """
    rows, total, width = heads.shape
    _, _, kv_heads, slots, capacity, _ = own.shape
    query = heads.new_empty(rows, total - 2 * kv_heads, width)
    _rotate_and_store[(rows, total)](
        heads, cosine, sine, query, own, slot_of_row, slot,
        heads.stride(0), slots, capacity, own.stride(0),
        H=query.shape[1], K=kv_heads, E=width, num_warps=1,
    )  # fmt: skip
    return query


def attend(
    query: Tensor,
    prompt_keys: Tensor,
    prompt_values: Tensor,
    start: Tensor,
    row_of_slot: Tensor,
    own: Tensor,
    slot_of_row: Tensor,
    slot: Tensor,
    scaling: float,
) -> Tensor:
    """Attention of a new token of each row to its prompt and to its own tokens, the new one included.

    Args:
        query: ``[R, H, E]``, rotated.
        prompt_keys: ``[B * K, P, E]`` contiguous, padded on the left.
        prompt_values: likewise.
        start: ``[B]`` int32, the first token of each prompt that is no padding.
        row_of_slot: ``[B * W]`` int32, the row that is stored in each slot; -1 for none.
        own: as for `rotate_and_store`.
        slot_of_row: likewise.
        slot: likewise.
        scaling: factor of the scores.

    Returns:
        ``[R, H * E]``.
    """
    rows, heads, width = query.shape
    _, _, kv_heads, slots, capacity, _ = own.shape
    pairs, length, _ = prompt_keys.shape
    group = heads // kv_heads
    blocks = triton.cdiv(slots * group, _QUERIES)
    splits = 1
    while splits < _MOST_SPLITS and 2 * splits * _KEYS <= length and pairs * blocks * splits < _PROGRAMS:
        splits *= 2
    split_length = triton.cdiv(triton.cdiv(length, splits), _KEYS) * _KEYS
    found = torch.empty(pairs, splits, slots * group, width, device=query.device)
    largest, total = (torch.empty(pairs, splits, slots * group, device=query.device) for _ in range(2))
    # Products of float32 are not rounded to TF32, and their tiles are twice as large.
    exact, stages = "ieee", 3 if query.dtype.itemsize == 2 else 2
    _attend_prompts[(pairs, splits, blocks)](
        query, prompt_keys, prompt_values, start, row_of_slot, found, largest, total,
        scaling, slots, length, split_length,
        H=heads, K=kv_heads, E=width, N=splits, EXACT=exact,
        QUERIES=min(_QUERIES, max(_LEAST, triton.next_power_of_2(slots * group))), KEYS=_KEYS,
        num_warps=4, num_stages=stages,
    )  # fmt: skip
    output = query.new_empty(rows, heads * width)
    _attend_own[(rows, kv_heads)](
        query, own, slot_of_row, slot, found, largest, total, output,
        scaling, slots, capacity, own.stride(0),
        H=heads, K=kv_heads, E=width, N=splits, EXACT=exact,
        QUERIES=max(_LEAST, triton.next_power_of_2(group)), KEYS=_KEYS,
        num_warps=4, num_stages=stages,
    )  # fmt: skip
    return output
