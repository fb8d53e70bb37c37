"""What a rollout on a CPU computes by `vr1.cpu_kernels`: the attention of its cache, and the choice of tokens.

Shape letters: B prompts, P prompt tokens, W slots of a prompt, R rows, K key and value heads, E head width, T capacity
for own tokens, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from vr1.cpu_kernels import decoding
from vr1.policy.attention import Scores
from vr1.rollout.cache import GroupCache, cache_capacity
from vr1.rollout.sampling import Sampling, sample_token
from vr1.types import Prefix

__all__ = ["CpuKernelCache", "sample_token_by_kernel"]


class CpuKernelCache(GroupCache):
    """A `GroupCache` in float32 for `vr1.rollout.decoder.LayerDecoder`, with the arguments of any other.

    Keys are stored with the tokens last, so that a vector of the processor has one number of several keys.
    """

    layer_kernels = decoding

    def __init__(self, prefix: Prefix, group: int) -> None:
        super().__init__(prefix, group)
        length = prefix.mask.shape[1]
        self.prompt_keys[:] = [
            pad(part, (0, decoding.padded(length) - length)).contiguous() for part in self.prompt_keys
        ]
        self.prompt_values[:] = [part.contiguous() for part in self.prompt_values]
        self._first_token = (~prefix.mask).sum(1)
        # Of each layer: keys [B * K * W, E, T] and values [B * K * W, T, E].
        self._own_keys: list[Tensor] = []
        self._own_values: list[Tensor] = []
        self._note_rows()

    def _note_rows(self) -> None:
        """Which row is stored in each slot, ``[B * W]`` int64; -1 where none is."""
        self._row_of_slot = torch.full((self._prompts * self._slots,), -1)
        self._row_of_slot[self._slot_of_row] = torch.arange(len(self._slot_of_row))

    @override
    def rotate_and_attend(
        self, layer: int, heads: Tensor, cosine: Tensor, signed_sine: Tensor, scores: Scores
    ) -> Tensor:
        if layer == 0:
            self._length += 1
        capacity = cache_capacity(self._length)
        if layer == len(self._own_keys):
            sequences, width = self._prompts * self.kv_heads * self._slots, heads.shape[2]
            self._own_keys.append(heads.new_zeros(sequences, width, capacity))
            self._own_values.append(heads.new_zeros(sequences, capacity, width))
        elif capacity > (present := self._own_keys[layer].shape[2]):
            self._own_keys[layer] = pad(self._own_keys[layer], (0, capacity - present))
            self._own_values[layer] = pad(self._own_values[layer], (0, 0, 0, capacity - present))
        return decoding.attend(
            heads.contiguous(),
            cosine.contiguous(),
            signed_sine.contiguous(),
            self.prompt_keys[layer],
            self.prompt_values[layer],
            self._first_token,
            self._row_of_slot,
            self._own_keys[layer],
            self._own_values[layer],
            self._length - 1,
            scores.scaling,
        )

    @override
    def select(self, rows: Tensor) -> None:
        shape = (self._prompts, self.kv_heads, self._slots)
        before = self._slot_of_row[rows] // self._slots, self._slot_of_row[rows] % self._slots
        super().select(rows)
        self._first_token = self._first_token[before[0].unique_consecutive()]
        after = self._slot_of_row // self._slots, self._slot_of_row % self._slots
        for kind in (self._own_keys, self._own_values):
            for layer, part in enumerate(kind):
                stay = part.unflatten(0, shape)[before[0], :, before[1]]
                moved = stay.new_zeros(self._prompts, self.kv_heads, self._slots, *part.shape[1:])
                moved[after[0], :, after[1]] = stay
                kind[layer] = moved.flatten(0, 2)
        self._note_rows()


def sample_token_by_kernel(logits: Tensor, sampling: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """As `vr1.rollout.sampling.sample_token`, which it calls where the largest logits have to be found.

    Args:
        logits: ``[R, V]`` float32.
        sampling: temperature and top-p.
        uniform: ``[R]`` uniform random numbers in [0, 1).
    """
    if sampling.temperature == 0 or sampling.top_p < 1:
        return sample_token(logits, sampling, uniform)
    return decoding.sample(logits.contiguous(), uniform.double().contiguous(), sampling.temperature)
