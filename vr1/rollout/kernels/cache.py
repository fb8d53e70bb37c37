"""The cache of a rollout whose attention is computed by vr1's kernels.

Shape letters: B prompts, W slots of a prompt, R rows, H query heads, K key and value heads, E head width.
"""

import torch
from torch import Tensor
from typing_extensions import override

from vr1.policy.attention import Scores
from vr1.rollout.cache import StaticGroupCache
from vr1.types import Prefix

__all__ = ["KernelGroupCache"]


class KernelGroupCache(StaticGroupCache):
    """A `StaticGroupCache` for `vr1.rollout.decoder.LayerDecoder`; arguments as for `vr1.rollout.cache.GroupCache`.

    Only the tokens that are stored are read, whatever the capacity.
    """

    def __init__(self, prefix: Prefix, group: int) -> None:
        from vr1.rollout.kernels import layers

        super().__init__(prefix, group)
        self.layer_kernels = layers
        self._first_token = (~prefix.mask).sum(1).int()
        self._lay_out()

    @override
    def select(self, rows: Tensor) -> None:
        remaining = (self._slot_of_row[rows] // self._slots).unique_consecutive()
        super().select(rows)
        self._first_token = self._first_token[remaining]
        self._lay_out()

    def _lay_out(self) -> None:
        """What the kernels read beside keys and values: where rows are stored, and contiguous prompts."""
        self._slot = self._slot_of_row.int()
        self._row = torch.full((self._prompts * self._slots,), -1, dtype=torch.int32, device=self._slot.device)
        self._row[self._slot_of_row] = torch.arange(len(self._slot), dtype=torch.int32, device=self._slot.device)
        self.prompt_keys[:] = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in self.prompt_keys]
        self.prompt_values[:] = [part.contiguous() for part in self.prompt_values]

    @override
    def rotate_and_attend(
        self, layer: int, heads: Tensor, cosine: Tensor, signed_sine: Tensor, scores: Scores
    ) -> Tensor:
        from vr1.rollout.kernels.attention import attend, rotate_and_store

        if layer == 0:
            self.slot.add_(1)
        if layer == len(self._own):
            shape = (2, self._prompts, self.kv_heads, self._slots, self._capacity, heads.shape[-1])
            self._own.append(heads.new_zeros(shape, dtype=self._dtype))
        own = self._own[layer]
        query = rotate_and_store(heads, cosine[:, 0], signed_sine[:, 0], own, self._slot, self.slot)
        keys, values = self.prompt_keys[layer].transpose(1, 2), self.prompt_values[layer]
        return attend(query, keys, values, self._first_token, self._row, own, self._slot, self.slot, scores.scaling)
