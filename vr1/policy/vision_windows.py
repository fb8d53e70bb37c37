"""The windows of Qwen2.5-VL's vision tower in one attention for all of a length.

Most of its layers look at an image window by window. transformers calls an attention for each: some sixty for a
thousand visual tokens, in every layer, where what they compute is small. Nearly all windows are of one length, those at
the image's edges of a few others.

Shape letters: N patches of all images, W windows, L patches of a window, H heads, E width of a head, D hidden size.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
)


class WindowAttention(Qwen2_5_VLVisionAttention):
    """The attention of transformers, with its weights, names and results."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, cu_seqlens: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **settings: Any
    ) -> Tensor:
        """Attention among the patches of each window, ``[N, D]`` -> ``[N, D]``.

        Args:
            hidden_states: ``[N, D]``, window after window.
            cu_seqlens: ``[W + 1]``, where each window begins, and N.
            position_embeddings: cosine and sine ``[N, E]`` of the rotary positions.
            settings: as transformers hands them on.
        """
        if self.config._attn_implementation != "sdpa":
            return super().forward(hidden_states, cu_seqlens, position_embeddings=position_embeddings, **settings)
        parts = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = parts.unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        return self.proj(_in_windows(query, key, value, cu_seqlens, self.scaling).flatten(1))


def _in_windows(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, scaling: float) -> Tensor:
    """``[N, H, E]`` three times -> ``[N, H, E]``: each window among itself."""
    bounds = starts.tolist()
    lengths = [end - start for start, end in pairwise(bounds)]
    if len(set(lengths)) == 1:
        return _attend(query, key, value, lengths[0], scaling)
    results, order = [], []
    for length in sorted(set(lengths)):
        windows = torch.tensor([start for start, own in zip(bounds, lengths, strict=False) if own == length])
        places = (windows[:, None] + torch.arange(length)).flatten().to(query.device)
        results.append(_attend(query[places], key[places], value[places], length, scaling))
        order.append(places)
    return torch.cat(results)[torch.cat(order).argsort()]


def _attend(query: Tensor, key: Tensor, value: Tensor, length: int, scaling: float) -> Tensor:
    query, key, value = (part.unflatten(0, (-1, length)).transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2).flatten(0, 1)


def in_batches(network: nn.Module) -> None:
    """Have the windows of Qwen2.5-VL's vision tower computed together, in place; other models stay as they are."""
    for layer in network.modules():
        if type(layer) is Qwen2_5_VLVisionAttention:
            layer.__class__ = WindowAttention
