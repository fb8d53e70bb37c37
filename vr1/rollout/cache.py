"""Keys and values of a rollout: those of a prompt once for its group, and those of each completion.

Shape letters: B prompts, P prompt tokens, W slots of a prompt, R running rows, H query heads, K key and value heads, E
head width, S tokens of the completions so far.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from vr1.policy.attention import Scores
from vr1.policy.products import autocast_dtype, multiplies_into_float32, without_autocast
from vr1.types import Prefix

# Capacity for completion tokens at first. It doubles when it is full, so that a high token limit alone costs nothing.
_INITIAL_CAPACITY = 64
# Of a cache whose whole capacity is read for each token: every larger one is a step that has to be captured again.
_STATIC_CAPACITY = 128


def cache_capacity(tokens: int, initial: int = _INITIAL_CAPACITY) -> int:
    """How many completion tokens a `GroupCache` has allocated memory for when it stores some.

    While it grows, one layer at a time has both its old and its new memory.

    Args:
        tokens: completion tokens of each row.
        initial: capacity at first.

    Example:
        >>> [cache_capacity(tokens) for tokens in (1, 64, 65, 512)]
        [64, 64, 128, 512]
    """
    capacity = initial
    while capacity < tokens:
        capacity *= 2
    return capacity


class LayerKernels(Protocol):
    """Kernels of what a decoder layer computes element by element, of R rows."""

    def rms_norm(self, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """``x * rsqrt(mean(x^2) + epsilon) * weight`` of contiguous states ``[R, D]``."""

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """``silu(gate) * up`` of ``[R, D]`` each."""


class GroupCache:
    """The attention of new tokens, which stores their keys and values.

    A new token attends to two sets of keys: the prompt's, which its whole group shares, and those of its completion.
    One softmax over the scores of both makes it one attention. All queries of a group are multiplied with the prompt's
    keys in one product, so that the prompt's keys and values are read once per group.

    Tensors are laid out by prompt, head and slot, so that both sets are plain batched products. A prompt has as many
    slots as the largest group has running rows; unused slots are computed and ignored.

    Scores and softmax are float32, also where queries and keys are not: products of 16-bit tensors are summed and
    returned in float32 (`vr1.policy.products`). Devices that cannot do so get keys and values in float32.

    Args:
        prefix: the prompts.
        group: completions of each prompt.

    Attributes:
        kv_heads: K.
        prompt_keys: of each layer, ``[B * K, E, P]``.
        prompt_values: of each layer, ``[B * K, P, E]``.
    """

    # `rms_norm` and `gated` of the kernels that compute a step, if any do (`vr1.rollout.kernels`).
    layer_kernels: LayerKernels | None = None

    def __init__(self, prefix: Prefix, group: int) -> None:
        self._prompts, self._slots = len(prefix.mask), group
        device, dtype = prefix.keys[0].device, prefix.keys[0].dtype
        self._device_type = device.type
        dtype = autocast_dtype(self._device_type) or dtype
        # Whether 16-bit queries are multiplied with 16-bit keys.
        self._mixed = dtype.itemsize == 2 and multiplies_into_float32(device)
        self._dtype = dtype if self._mixed or dtype.itemsize > 2 else torch.float32
        # Laid out for the products.
        self.prompt_keys = [self._stored(part, dtype).transpose(1, 2) for part in prefix.keys]
        self.prompt_values = [self._stored(part, dtype) for part in prefix.values]
        self.kv_heads = prefix.keys[0].shape[1]
        # Factors of the queries, as tensors whose products with 16-bit queries are float32.
        self._scalings: dict[float, Tensor] = {}
        mask = None if bool(prefix.mask.all()) else ~prefix.mask
        self._padding = None if mask is None else mask.repeat_interleave(self.kv_heads, dim=0)[:, None]
        # Of each layer, keys then values: [2, B, K, W, capacity, E].
        self._own: list[Tensor] = []
        self._length = 0
        self._slot_of_row = torch.arange(self._prompts * group, device=prefix.mask.device)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Attention of one new token in each row, as `vr1.policy.attention.Sharing` with Q = S = 1."""
        own = torch.cat([key, value], dim=1)[:, :, 0]
        with without_autocast(self._device_type):
            output = self.attend(layer, query[:, :, 0], own, scores)
        return output.view(len(output), 1, *query.shape[1::2])

    def rotate_and_attend(
        self, layer: int, heads: Tensor, cosine: Tensor, signed_sine: Tensor, scores: Scores
    ) -> Tensor:
        """The same attention with queries, keys and values in one tensor, before queries and keys are rotated.

        Args:
            layer: number of the layer, from 0; layers are called in order.
            heads: ``[R, H + 2 * K, E]``; changed in place.
            cosine: ``[R, 1, E]`` of the rotary positions.
            signed_sine: ``[R, 1, E]``, its first half negated.
            scores: how scores are computed. Call it outside of autocast.

        Returns:
            ``[R, H * E]`` in the precision of ``heads``.
        """
        qk = heads[:, : -self.kv_heads]
        swapped = qk.roll(heads.shape[-1] // 2, dims=-1)
        # In place, so that queries and keys, which are views, are rotated.
        torch.addcmul(qk * cosine, swapped, signed_sine, out=qk)
        return self.attend(layer, heads[:, : -2 * self.kv_heads], heads[:, -2 * self.kv_heads :], scores)

    def attend(self, layer: int, query: Tensor, own: Tensor, scores: Scores) -> Tensor:
        """The same attention with keys and values in one tensor, which saves copies.

        Args:
            layer: number of the layer, from 0; layers are called in order.
            query: ``[R, H, E]``.
            own: ``[R, 2 * K, E]``, the new token's keys, then its values.
            scores: how scores are computed. Call it outside of autocast.

        Returns:
            ``[R, H * E]`` in the precision of ``own``.
        """
        keys, values = self._store(layer, own)
        product = _into_float32 if self._mixed else torch.bmm
        queries = self._group_queries(query.to(self._dtype) if self._mixed else self._scaled(query, scores.scaling))
        to_prompt = product(queries, self.prompt_keys[layer])
        to_own = product(queries.view(len(keys), -1, keys.shape[2]), keys.transpose(1, 2))
        found = torch.cat([to_prompt, to_own.view(*queries.shape[:2], -1)], dim=-1)
        if self._mixed:
            found.mul_(scores.scaling)
        if scores.cap is not None:
            found = torch.tanh(found / scores.cap) * scores.cap
        self._hide(found, scores.window)
        weights = torch.softmax(found, dim=-1).to(values.dtype)
        of_prompt, of_own = weights.split([to_prompt.shape[2], keys.shape[1]], dim=-1)
        result = torch.bmm(of_prompt, self.prompt_values[layer]).view(len(keys), -1, keys.shape[2])
        result = torch.baddbmm(result, of_own.reshape(len(keys), -1, keys.shape[1]), values)
        output = self._to_rows(result)
        return output if output.dtype == own.dtype else output.to(own.dtype)

    def reserve(self, tokens: int) -> bool:
        """Say that each row will have so many tokens; returns whether this has moved what is stored."""
        del tokens  # Storing a token makes room for it.
        return False

    def select(self, rows: Tensor) -> None:
        """Remove all rows but some, and the prompts without rows.

        Args:
            rows: ``[R']`` int64, the rows that stay, ascending.
        """
        before = self._slot_of_row[rows] // self._slots, self._slot_of_row[rows] % self._slots
        remaining, prompt, counts = before[0].unique_consecutive(return_inverse=True, return_counts=True)
        if len(remaining) < self._prompts:
            shape = (self._prompts, self.kv_heads)
            for kind in (self.prompt_keys, self.prompt_values):
                kind[:] = [part.unflatten(0, shape)[remaining].flatten(0, 1) for part in kind]
            if self._padding is not None:
                self._padding = self._padding.unflatten(0, shape)[remaining].flatten(0, 1)
        self._prompts, self._slots = len(remaining), int(counts.max())
        rank = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[prompt]
        self._slot_of_row = prompt * self._slots + rank
        for layer, part in enumerate(self._own):
            stay = part[:, before[0], :, before[1]]
            self._own[layer] = stay.new_zeros(2, self._prompts, self.kv_heads, self._slots, *stay.shape[3:])
            self._own[layer][:, prompt, :, rank] = stay

    def _scaled(self, query: Tensor, scaling: float) -> Tensor:
        if query.dtype == self._dtype:
            return query * scaling
        if scaling not in self._scalings:
            self._scalings[scaling] = torch.full((1,), scaling, dtype=self._dtype, device=query.device)
        return query * self._scalings[scaling]

    def _stored(self, part: Tensor, dtype: torch.dtype) -> Tensor:
        """Keys or values of prompts ``[B, K, P, E]`` in a precision, as they are stored: ``[B * K, P, E]``."""
        return part.detach().to(dtype).to(self._dtype).flatten(0, 1)

    def _hide(self, scores: Tensor, window: int | None) -> None:
        """Set scores ``[B * K, W * H / K, P + S]`` of tokens that the new one does not see to minus infinity."""
        if self._padding is not None:
            scores[..., : self._padding.shape[2]].masked_fill_(self._padding, -torch.inf)
        if window is not None:
            # Prompts are padded on the left, so that all of them end just before the first own token.
            scores[..., : max(scores.shape[2] - window, 0)] = -torch.inf

    def _store(self, layer: int, own: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values ``[R, 2 * K, E]`` of a token; returns all so far, ``[B * K * W, S, E]`` each."""
        if layer == 0:
            self._length += 1
        token = self._by_slot(own)
        if layer == len(self._own):
            self._own.append(self._empty(token, cache_capacity(self._length)))
        elif self._length > self._own[layer].shape[4]:
            self._enlarge(layer, cache_capacity(self._length))
        self._own[layer][..., self._length - 1, :] = token
        keys, values = self._own[layer][..., : self._length, :].flatten(1, 3).unbind()
        return keys, values

    def _by_slot(self, own: Tensor) -> Tensor:
        """Keys and values ``[R, 2 * K, E]`` as ``[2, B, K, W, E]``."""
        return self._to_slots(own).view(self._prompts, self._slots, 2, self.kv_heads, -1).permute(2, 0, 3, 1, 4)

    def _empty(self, token: Tensor, capacity: int) -> Tensor:
        """Memory of a layer for tokens such as ``token`` ``[2, B, K, W, E]``."""
        return token.new_zeros(*token.shape[:4], capacity, token.shape[4], dtype=self._dtype)

    def _enlarge(self, layer: int, capacity: int) -> None:
        old = self._own[layer]
        self._own[layer] = old.new_zeros(*old.shape[:4], capacity, old.shape[5])
        self._own[layer][..., : old.shape[4], :] = old

    def _group_queries(self, query: Tensor) -> Tensor:
        """``[R, H, E]`` -> ``[B * K, W * H / K, E]``: queries to the same prompt keys side by side."""
        shape = (self._prompts, self._slots, self.kv_heads, -1, query.shape[2])
        return self._to_slots(query).view(shape).transpose(1, 2).reshape(shape[0] * shape[2], -1, shape[4])

    def _to_rows(self, output: Tensor) -> Tensor:
        """``[B * K * W, H / K, E]`` -> ``[R, H * E]``."""
        rows = output.view(self._prompts, self.kv_heads, self._slots, -1).transpose(1, 2)
        rows = rows.reshape(self._prompts * self._slots, -1)
        return rows if len(rows) == len(self._slot_of_row) else rows[self._slot_of_row]

    def _to_slots(self, rows: Tensor) -> Tensor:
        """``[R, ...]`` -> ``[B * W, ...]``."""
        if len(rows) == self._prompts * self._slots:
            return rows
        return rows.new_zeros(self._prompts * self._slots, *rows.shape[1:]).index_copy(0, self._slot_of_row, rows)


class StaticGroupCache(GroupCache):
    """A `GroupCache` whose tensors keep their shapes and addresses from token to token, for a step that is replayed.

    How many tokens it stores is counted on the device. Each token reads the whole capacity and hides what is not
    stored yet, so that the operators of a step do not depend on their number.
    """

    def __init__(self, prefix: Prefix, group: int) -> None:
        super().__init__(prefix, group)
        self._capacity, device = _STATIC_CAPACITY, prefix.keys[0].device
        # [1] int64, where the present token is stored.
        self.slot = torch.full((1,), -1, device=device)
        self._prompt_width = prefix.mask.shape[1]
        # By window, for the present token: [B * K or 1, 1, P + capacity], true on tokens that it does not see.
        self._hidden: dict[int | None, Tensor] = {}

    @property
    def capacity(self) -> int:
        """How many tokens of each row there is room for."""
        return self._capacity

    def forget(self) -> None:
        """Clear keys and values that were stored after the present token."""
        for part in self._own:
            part[..., int(self.slot) + 1 :, :] = 0

    def reserve(self, tokens: int) -> bool:
        """Make room for so many tokens of each row; returns whether this has moved what is stored."""
        if tokens <= self._capacity:
            return False
        self._capacity = cache_capacity(tokens, _STATIC_CAPACITY)
        for layer in range(len(self._own)):
            self._enlarge(layer, self._capacity)
        return True

    def _store(self, layer: int, own: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values of a token; returns the whole capacity, ``[B * K * W, capacity, E]`` each."""
        if layer == 0:
            self.slot.add_(1)
            self._hidden.clear()
        token = self._by_slot(own)
        if layer == len(self._own):
            self._own.append(self._empty(token, self._capacity))
        self._own[layer].index_copy_(4, self.slot, token[..., None, :].to(self._dtype))
        keys, values = self._own[layer].flatten(1, 3).unbind()
        return keys, values

    def _hide(self, scores: Tensor, window: int | None) -> None:
        if window not in self._hidden:
            # Prompts are padded on the left, so that distances count through them.
            distance = self.slot + self._prompt_width - torch.arange(scores.shape[2], device=scores.device)
            hidden = distance < 0
            if window is not None:
                hidden = hidden | (distance >= window)
            if self._padding is not None:
                hidden = hidden | pad(self._padding, (0, scores.shape[2] - self._prompt_width))
            self._hidden[window] = hidden
        scores.masked_fill_(self._hidden[window], -torch.inf)


def _into_float32(first: Tensor, second: Tensor) -> Tensor:
    """Products ``[N, Q, E] x [N, E, S]`` of 16-bit tensors, summed and returned in float32."""
    return torch.bmm(first, second, out_dtype=torch.float32)
