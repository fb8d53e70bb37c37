"""Keys and values of a rollout: the prompts' once, whatever the size of the group, and each completion's own.

Shape letters: B prompts, P prompt tokens, W places of a prompt, R rows still running, H query heads, K key and value
heads, E width of a head, S tokens of the completions so far.
"""

import torch
from torch import Tensor

from vr1.types import Prefix

# Room for this many tokens at first; it doubles when it is used up, so that long limits cost nothing by themselves.
_ROOM = 64


class GroupCache:
    """The attention of new tokens, which stores their keys and values.

    A new token looks at two parts, the prompt's keys, which its whole group shares, and its completion's own. A softmax
    over both together makes them one attention. All queries of a group meet the prompt's keys in one product, so the
    prompt is read once per group.

    Everything is laid out by prompt, head and place, so that both parts are plain batched products. A prompt has as
    many places as the largest group still has rows; what stands in the places left over is never looked at.

    Args:
        prefix: the prompts.
        group: completions of each prompt.
    """

    def __init__(self, prefix: Prefix, group: int) -> None:
        self.prompts, self.width = len(prefix.mask), group
        # [B * K, E, P] and [B * K, P, E]: as the products want them.
        self.prompt_keys = [part.detach().flatten(0, 1).transpose(1, 2) for part in prefix.keys]
        self.prompt_values = [part.detach().flatten(0, 1) for part in prefix.values]
        self.shared_heads = prefix.keys[0].shape[1]
        mask = None if bool(prefix.mask.all()) else ~prefix.mask
        self.padding = None if mask is None else mask.repeat_interleave(self.shared_heads, dim=0)[:, None]
        # [2, B, K, W, room, E]: keys, then values.
        self.own: list[Tensor] = []
        self.length = 0
        self.places = torch.arange(self.prompts * group, device=prefix.mask.device)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention of a new token in each row, ``[R, H, 1, E]`` and ``[R, K, 1, E]`` twice -> ``[R, 1, H, E]``."""
        seen = self.attend(layer, query[:, :, 0] * scaling, torch.cat([key, value], dim=1)[:, :, 0])
        return seen.view(len(seen), 1, *query.shape[1::2])

    def attend(self, layer: int, query: Tensor, own: Tensor) -> Tensor:
        """The same for callers that lay out heads by themselves.

        Args:
            layer: number of the layer.
            query: ``[R, H, E]``, scaled.
            own: ``[R, 2 * K, E]``, the new token's keys, then its values.

        Returns:
            ``[R, H * E]``.
        """
        keys, values = self._store(layer, own)
        queries = self._by_prompt(query)
        to_prompt = torch.bmm(queries, self.prompt_keys[layer])
        if self.padding is not None:
            to_prompt.masked_fill_(self.padding, -torch.inf)
        to_own = torch.bmm(queries.view(len(keys), -1, keys.shape[2]), keys.transpose(1, 2))
        scores = torch.cat([to_prompt, to_own.view(*queries.shape[:2], -1)], dim=-1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)
        of_prompt, of_own = weights.split([to_prompt.shape[2], self.length], dim=-1)
        result = torch.bmm(of_prompt, self.prompt_values[layer]).view(len(keys), -1, keys.shape[2])
        return self._by_row(torch.baddbmm(result, of_own.reshape(len(keys), -1, self.length), values))

    def keep(self, rows: Tensor) -> None:
        """Leave out all rows but these ``[R']``, in ascending order, and the prompts without any."""
        before = self.places[rows] // self.width, self.places[rows] % self.width
        alive, prompt, counts = before[0].unique_consecutive(return_inverse=True, return_counts=True)
        if len(alive) < self.prompts:
            shape = (self.prompts, self.shared_heads)
            for kind in (self.prompt_keys, self.prompt_values):
                kind[:] = [part.unflatten(0, shape)[alive].flatten(0, 1) for part in kind]
            if self.padding is not None:
                self.padding = self.padding.unflatten(0, shape)[alive].flatten(0, 1)
        self.prompts, self.width = len(alive), int(counts.max())
        rank = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[prompt]
        self.places = prompt * self.width + rank
        for layer, part in enumerate(self.own):
            kept = part[:, before[0], :, before[1]]
            self.own[layer] = kept.new_zeros(2, self.prompts, self.shared_heads, self.width, *kept.shape[3:])
            self.own[layer][:, prompt, :, rank] = kept

    def _store(self, layer: int, own: Tensor) -> tuple[Tensor, Tensor]:
        """Take in the keys and values ``[R, 2 * K, E]`` of a token; all so far, ``[B * K * W, S, E]`` each."""
        if layer == 0:
            self.length += 1
        token = self._at_places(own).view(self.prompts, self.width, 2, self.shared_heads, -1).permute(2, 0, 3, 1, 4)
        if layer == len(self.own):
            self.own.append(token.new_zeros(*token.shape[:4], _ROOM, token.shape[4]))
        elif self.length > self.own[layer].shape[4]:
            self.own[layer] = torch.cat([self.own[layer], torch.zeros_like(self.own[layer])], dim=4)
        self.own[layer][..., self.length - 1, :] = token
        keys, values = self.own[layer][..., : self.length, :].flatten(1, 3).unbind()
        return keys, values

    def _by_prompt(self, query: Tensor) -> Tensor:
        """``[R, H, E]`` -> ``[B * K, W * H / K, E]``: what meets the same keys side by side."""
        shape = (self.prompts, self.width, self.shared_heads, -1, query.shape[2])
        return self._at_places(query).view(shape).transpose(1, 2).reshape(shape[0] * shape[2], -1, shape[4])

    def _by_row(self, seen: Tensor) -> Tensor:
        """``[B * K * W, H / K, E]`` -> ``[R, H * E]``."""
        rows = seen.view(self.prompts, self.shared_heads, self.width, -1).transpose(1, 2)
        rows = rows.reshape(self.prompts * self.width, -1)
        return rows if len(rows) == len(self.places) else rows[self.places]

    def _at_places(self, rows: Tensor) -> Tensor:
        """``[R, ...]`` -> ``[B * W, ...]``."""
        if len(rows) == self.prompts * self.width:
            return rows
        return rows.new_zeros(self.prompts * self.width, *rows.shape[1:]).index_copy(0, self.places, rows)
