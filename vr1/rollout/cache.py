"""Keys and values of a rollout: those of a prompt once for its group, and those of each completion.

Shape letters: B prompts, P prompt tokens, W slots of a prompt, R running rows, H query heads, K key and value heads, E
head width, S tokens of the completions so far.
"""

import torch
from torch import Tensor

from vr1.policy.attention import Scores
from vr1.types import Prefix

# Capacity for completion tokens at first. It doubles when it is full, so that a high token limit alone costs nothing.
_INITIAL_CAPACITY = 64


def cache_capacity(tokens: int) -> int:
    """How many completion tokens a `GroupCache` has allocated memory for when it stores some.

    While it grows, one layer at a time has both its old and its new memory.

    Args:
        tokens: completion tokens of each row.

    Example:
        >>> [cache_capacity(tokens) for tokens in (1, 64, 65, 512)]
        [64, 64, 128, 512]
    """
    capacity = _INITIAL_CAPACITY
    while capacity < tokens:
        capacity *= 2
    return capacity


class GroupCache:
    """The attention of new tokens, which stores their keys and values.

    A new token attends to two sets of keys: the prompt's, which its whole group shares, and those of its completion.
    One softmax over the scores of both makes it one attention. All queries of a group are multiplied with the prompt's
    keys in one product, so that the prompt's keys and values are read once per group.

    Tensors are laid out by prompt, head and slot, so that both sets are plain batched products. A prompt has as many
    slots as the largest group has running rows; unused slots are computed and ignored.

    Args:
        prefix: the prompts.
        group: completions of each prompt.

    Attributes:
        kv_heads: K.
        prompt_keys: of each layer, ``[B * K, E, P]``.
        prompt_values: of each layer, ``[B * K, P, E]``.
    """

    def __init__(self, prefix: Prefix, group: int) -> None:
        self._prompts, self._slots = len(prefix.mask), group
        # Laid out for the products.
        self.prompt_keys = [part.detach().flatten(0, 1).transpose(1, 2) for part in prefix.keys]
        self.prompt_values = [part.detach().flatten(0, 1) for part in prefix.values]
        self.kv_heads = prefix.keys[0].shape[1]
        mask = None if bool(prefix.mask.all()) else ~prefix.mask
        self._padding = None if mask is None else mask.repeat_interleave(self.kv_heads, dim=0)[:, None]
        # Of each layer, keys then values: [2, B, K, W, capacity, E].
        self._own: list[Tensor] = []
        self._length = 0
        self._slot_of_row = torch.arange(self._prompts * group, device=prefix.mask.device)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Attention of one new token in each row, as `vr1.policy.attention.Sharing` with Q = S = 1."""
        own = torch.cat([key, value], dim=1)[:, :, 0]
        output = self.attend(layer, query[:, :, 0] * scores.scaling, own, scores.cap, scores.window)
        return output.view(len(output), 1, *query.shape[1::2])

    def attend(
        self, layer: int, query: Tensor, own: Tensor, cap: float | None = None, window: int | None = None
    ) -> Tensor:
        """The same attention with keys and values in one tensor, which saves copies.

        Args:
            layer: number of the layer, from 0; layers are called in order.
            query: ``[R, H, E]``, scaled.
            own: ``[R, 2 * K, E]``, the new token's keys, then its values.
            cap: bound of the scores, approached by tanh; None for no bound.
            window: tokens that the new one sees, itself among them; None for all.

        Returns:
            ``[R, H * E]``.
        """
        keys, values = self._store(layer, own)
        queries = self._group_queries(query)
        to_prompt = torch.bmm(queries, self.prompt_keys[layer])
        to_own = torch.bmm(queries.view(len(keys), -1, keys.shape[2]), keys.transpose(1, 2))
        if cap is not None:
            to_prompt, to_own = (torch.tanh(part / cap) * cap for part in (to_prompt, to_own))
        if self._padding is not None:
            to_prompt.masked_fill_(self._padding, -torch.inf)
        if window is not None:
            # Prompts are padded on the left, so that all of them end just before the first own token.
            to_own[..., : max(self._length - window, 0)] = -torch.inf
            to_prompt[..., : max(to_prompt.shape[2] + self._length - window, 0)] = -torch.inf
        scores = torch.cat([to_prompt, to_own.view(*queries.shape[:2], -1)], dim=-1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)
        of_prompt, of_own = weights.split([to_prompt.shape[2], self._length], dim=-1)
        result = torch.bmm(of_prompt, self.prompt_values[layer]).view(len(keys), -1, keys.shape[2])
        return self._to_rows(torch.baddbmm(result, of_own.reshape(len(keys), -1, self._length), values))

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

    def _store(self, layer: int, own: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values ``[R, 2 * K, E]`` of a token; returns all so far, ``[B * K * W, S, E]`` each."""
        if layer == 0:
            self._length += 1
        token = self._to_slots(own).view(self._prompts, self._slots, 2, self.kv_heads, -1).permute(2, 0, 3, 1, 4)
        if layer == len(self._own):
            self._own.append(token.new_zeros(*token.shape[:4], cache_capacity(self._length), token.shape[4]))
        elif self._length > (full := self._own[layer].shape[4]):
            grown = token.new_zeros(*token.shape[:4], cache_capacity(self._length), token.shape[4])
            grown[..., :full, :] = self._own[layer]
            self._own[layer] = grown
        self._own[layer][..., self._length - 1, :] = token
        keys, values = self._own[layer][..., : self._length, :].flatten(1, 3).unbind()
        return keys, values

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
