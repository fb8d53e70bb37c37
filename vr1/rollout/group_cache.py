"""Keys and values of a rollout: the prompts' once, whatever the size of the group, and each completion's own.

Shape letters: B prompts, P prompt tokens, R rows still running, H query heads, K key and value heads, E width of a
head, S tokens of the completions so far.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

# Room for this many tokens at first; it doubles when it is used up, so that long limits cost nothing by themselves.
_ROOM = 64


class GroupCache:
    """What transformers' layers write keys and values to, and the attention that reads them.

    A new token looks at two parts, the prompt's keys, which its whole group shares, and its completion's own. A softmax
    over both together makes them one attention. All queries of a group meet the prompt's keys in one product, so the
    prompt is read once per group.

    Args:
        prompts: the cache of the prompts' forward, keys ``[B, K, P, E]``.
        mask: ``[B, P]`` bool, true on tokens.
        group: completions of each prompt.
    """

    def __init__(self, prompts: DynamicCache, mask: Tensor, group: int) -> None:
        layers: list[Any] = list(prompts.layers)
        self.prompt_keys: list[Tensor] = [layer.keys for layer in layers]
        self.prompt_values: list[Tensor] = [layer.values for layer in layers]
        self.padding = None if bool(mask.all()) else ~mask[:, None, None]
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.length = 0
        # Rows lie prompt by prompt, in as many places for each as the largest group still has.
        self.places = torch.arange(len(mask) * group, device=mask.device)
        self.width = group

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take in the keys and values ``[R, K, 1, E]`` of a token; all of the completions' so far ``[R, K, S, E]``."""
        if layer == 0:
            self.length += 1
        if layer == len(self.keys):
            shape = (*key.shape[:2], _ROOM, key.shape[3])
            self.keys.append(key.new_empty(shape))
            self.values.append(value.new_empty(shape))
        elif self.length > self.keys[layer].shape[2]:
            for stored in (self.keys, self.values):
                stored[layer] = torch.cat([stored[layer], torch.empty_like(stored[layer])], dim=2)
        place = self.length - 1
        self.keys[layer][:, :, place] = key[:, :, 0]
        self.values[layer][:, :, place] = value[:, :, 0]
        return self.keys[layer][:, :, : self.length], self.values[layer][:, :, : self.length]

    def keep(self, rows: Tensor) -> None:
        """Leave out all rows but these ``[R']``, in ascending order, and the prompts without any."""
        for stored in (self.keys, self.values):
            stored[:] = [part[rows] for part in stored]
        prompt = self.places[rows] // self.width
        alive, prompt, counts = prompt.unique_consecutive(return_inverse=True, return_counts=True)
        if len(alive) < len(self.prompt_keys[0]):
            for stored in (self.prompt_keys, self.prompt_values):
                stored[:] = [part[alive] for part in stored]
            self.padding = None if self.padding is None else self.padding[alive]
        self.width = int(counts.max())
        rank = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[prompt]
        self.places = prompt * self.width + rank

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention of a new token in each row, ``[R, H, 1, E]`` -> ``[R, 1, H, E]``; keys and values from `update`."""
        rows, heads, _, head = query.shape
        queries = (query * scaling).reshape(rows, key.shape[1], -1, head)
        prompt_keys, prompt_values = self.prompt_keys[layer], self.prompt_values[layer]
        width = prompt_keys.shape[2]
        to_prompt = self._by_prompt(queries) @ prompt_keys.transpose(-1, -2)
        if self.padding is not None:
            to_prompt = to_prompt.masked_fill(self.padding, -torch.inf)
        scores = torch.cat([self._by_row(to_prompt), queries @ key.transpose(-1, -2)], dim=-1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
        of_prompt = self._by_prompt(weights[..., :width]) @ prompt_values
        result = self._by_row(of_prompt) + weights[..., width:] @ value
        return result.reshape(rows, 1, heads, head)

    def _by_prompt(self, part: Tensor) -> Tensor:
        """``[R, K, H / K, n]`` -> ``[B, K, places * H / K, n]``: what belongs to a prompt side by side."""
        prompts = len(self.prompt_keys[0])
        if len(part) < prompts * self.width:
            part = part.new_zeros(prompts * self.width, *part.shape[1:]).index_copy(0, self.places, part)
        return part.unflatten(0, (prompts, self.width)).transpose(1, 2).flatten(2, 3)

    def _by_row(self, part: Tensor) -> Tensor:
        """The inverse of `_by_prompt`."""
        rows = part.unflatten(2, (self.width, -1)).transpose(1, 2).flatten(0, 1)
        return rows if len(rows) == len(self.places) else rows[self.places]
