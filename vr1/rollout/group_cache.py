"""Keys and values of a rollout: the prompts' once, whatever the size of the group, and each completion's own.

Shape letters: B prompts, P prompt tokens, W places of a prompt, R rows still running, H query heads, K key and value
heads, E width of a head, S tokens of the completions so far.
"""

import torch
from torch import Tensor

from vr1.records import Prefix

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
        # [B * K, W, room, E]
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.length = 0
        self.places = torch.arange(self.prompts * group, device=prefix.mask.device)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention of a new token in each row, ``[R, H, 1, E]`` and ``[R, K, 1, E]`` twice -> ``[R, 1, H, E]``."""
        rows, heads, _, head = query.shape
        shared = self.shared_heads
        self._store(layer, key, value)
        keys, values = (part[layer][:, :, : self.length].flatten(0, 1) for part in (self.keys, self.values))
        queries = self._by_prompt((query * scaling).view(rows, shared, -1, head))
        to_prompt = torch.bmm(queries, self.prompt_keys[layer])
        if self.padding is not None:
            to_prompt.masked_fill_(self.padding, -torch.inf)
        to_own = torch.bmm(queries.view(len(keys), -1, head), keys.transpose(1, 2))
        scores = torch.cat([to_prompt, to_own.view(*queries.shape[:2], -1)], dim=-1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
        split = to_prompt.shape[2]
        result = torch.bmm(weights[..., :split], self.prompt_values[layer])
        own = weights[..., split:].reshape(len(keys), -1, self.length)
        result = torch.baddbmm(result.view(len(keys), -1, head), own, values)
        return self._by_row(result.view(self.prompts, shared, self.width, -1, head)).reshape(rows, 1, heads, head)

    def keep(self, rows: Tensor) -> None:
        """Leave out all rows but these ``[R']``, in ascending order, and the prompts without any."""
        shape = (self.prompts, self.shared_heads, self.width)
        stored = [[self._by_row(part.unflatten(0, shape[:2]))[rows] for part in kind] for kind in self._own()]
        prompt = self.places[rows] // self.width
        alive, prompt, counts = prompt.unique_consecutive(return_inverse=True, return_counts=True)
        if len(alive) < self.prompts:
            for kind in (self.prompt_keys, self.prompt_values):
                kind[:] = [part.unflatten(0, shape[:2])[alive].flatten(0, 1) for part in kind]
            if self.padding is not None:
                self.padding = self.padding.unflatten(0, shape[:2])[alive].flatten(0, 1)
        self.prompts, self.width = len(alive), int(counts.max())
        rank = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[prompt]
        self.places = prompt * self.width + rank
        for kind, parts in zip(self._own(), stored, strict=True):
            kind[:] = [self._by_prompt(part).unflatten(1, (self.width, -1)) for part in parts]

    def _own(self) -> tuple[list[Tensor], list[Tensor]]:
        return self.keys, self.values

    def _store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Take in the keys and values ``[R, K, 1, E]`` of a token."""
        if layer == 0:
            self.length += 1
        for kind, part in ((self.keys, key), (self.values, value)):
            if layer == len(kind):
                kind.append(part.new_zeros(self.prompts * self.shared_heads, self.width, _ROOM, part.shape[3]))
            elif self.length > kind[layer].shape[2]:
                kind[layer] = torch.cat([kind[layer], torch.zeros_like(kind[layer])], dim=2)
            kind[layer][:, :, self.length - 1] = self._by_prompt(part)

    def _by_prompt(self, part: Tensor) -> Tensor:
        """``[R, K, n, ...]`` -> ``[B * K, W * n, ...]``: what belongs to a prompt side by side."""
        if len(part) < self.prompts * self.width:
            part = part.new_zeros(self.prompts * self.width, *part.shape[1:]).index_copy(0, self.places, part)
        return part.unflatten(0, (self.prompts, self.width)).transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def _by_row(self, part: Tensor) -> Tensor:
        """``[B, K, W, ...]`` -> ``[R, K, ...]``."""
        rows = part.transpose(1, 2).flatten(0, 1)
        return rows if len(rows) == len(self.places) else rows[self.places]
