"""Attention among completions that share a prompt: computed between tokens that see each other, and no others.

transformers lets a model's attention be replaced by a registered function; `attend` is that function. Which tokens see
which travels with each call as ``sharing``: `PromptAttention` for prompts, `CompletionAttention` for completions after
their prompts, `vr1.rollout.cache.GroupCache` for single new tokens. Without it, `attend` is plain scaled-dot-product
attention.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens, T completion tokens of all rows together,
H query heads, K key and value heads, E head width, Q queries, S keys.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from vr1.types import Prefix

__all__ = ["CompletionAttention", "PromptAttention", "Sharing", "attend"]


class Sharing(Protocol):
    """The attention of one layer in one call of the language model."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Compute the attention of a layer.

        Args:
            layer: number of the layer, from 0.
            query: ``[rows, H, Q, E]``.
            key: ``[rows, K, S, E]``.
            value: ``[rows, K, S, E]``.
            scaling: factor on the scores.

        Returns:
            ``[rows, Q, H, E]``.
        """
        ...


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sharing: Sharing | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """The attention of one layer, with the signature of transformers' attention functions.

    Args:
        module: the attention layer.
        query: ``[rows, H, Q, E]``.
        key: ``[rows, K, S, E]``.
        value: ``[rows, K, S, E]``.
        attention_mask: used without ``sharing`` only.
        sharing: decides which tokens see which; None computes transformers' own sdpa attention.
        settings: further arguments of transformers, ``scaling`` among them.

    Returns:
        ``[rows, Q, H, E]``, and None for the attention weights.
    """
    if sharing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    return sharing(module.layer_idx, query, key, value, settings["scaling"]), None


class PromptAttention:
    """Causal attention of prompts padded on the left, which stores their keys and values.

    Args:
        mask: ``[B, P]`` bool, true on tokens.

    Attributes:
        keys: ``[B, K, P, E]`` of each layer that has been called.
        values: likewise.
    """

    def __init__(self, mask: Tensor) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._visible: Tensor | None = None
        if not bool(mask.all()):
            width = mask.shape[1]
            causal = torch.ones(width, width, dtype=torch.bool, device=mask.device).tril()
            # Padding sees itself: a softmax over nothing is NaN, which spreads through the layers above.
            itself = torch.eye(width, dtype=torch.bool, device=mask.device)
            self._visible = ((causal & mask[:, None]) | itself)[:, None]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention of one layer; see `Sharing`."""
        # A layer that backward recomputes has stored its keys and values the first time.
        if layer == len(self.keys):
            self.keys.append(key)
            self.values.append(value)
        keys, values = (_expand_heads(part, query) for part in (key, value))
        result = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=self._visible, is_causal=self._visible is None, scale=scaling
        )
        return result.transpose(1, 2)


class CompletionAttention:
    """Attention of completions laid end to end in one row: each sees its prompt and itself.

    A mask over the whole row would compute ``(P + G C)^2`` scores, of which ``G C (P + C)`` are used. So attention
    gives each completion a row of its own, with the prompt's keys before its own keys.

    Args:
        prefix: the prompts.
        mask: ``[B, G, C]`` bool, true on the tokens of the completions, at least one: the T tokens of the row in this
            order.
    """

    def __init__(self, prefix: Prefix, mask: Tensor) -> None:
        self._prefix = prefix
        batch, group, _ = mask.shape
        longest = int(mask.sum(-1).max())
        present = mask[..., :longest].flatten()
        # From the row to padded completions, where padding reads some token; and back.
        self._to_padded = (present.cumsum(0) - 1).clamp(min=0)
        self._to_row = present.nonzero()[:, 0]
        causal = torch.ones(longest, longest, dtype=torch.bool, device=mask.device).tril()
        visible = torch.cat([prefix.mask[:, None].expand(-1, longest, -1), causal.expand(batch, -1, -1)], dim=-1)
        # One mask for all completions of a prompt, and for all prompts if they have the same length.
        self._visible = (
            visible[:1, None] if bool(prefix.mask.all()) else visible.repeat_interleave(group, dim=0)[:, None]
        )
        self._shape = (batch, group, longest)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention of one layer with one row; see `Sharing`."""
        batch, group, longest = self._shape
        heads, kv_heads, width = query.shape[1], key.shape[1], query.shape[3]
        keys, values = (
            torch.cat([of_prompts[layer].repeat_interleave(group, dim=0), self._padded(own)], dim=2)
            for of_prompts, own in ((self._prefix.keys, key), (self._prefix.values, value))
        )
        # Query heads that share a key head become more queries to it, so that keys and values need no copies.
        queries = self._padded(query).reshape(batch * group, kv_heads, -1, width)
        visible = self._visible.repeat(1, 1, heads // kv_heads, 1)
        result = F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible, scale=scaling)
        result = result.reshape(batch * group, heads, longest, width).transpose(1, 2).reshape(-1, heads, width)
        return result.index_select(0, self._to_row)[None]

    def _padded(self, part: Tensor) -> Tensor:
        """One row for each completion: ``[1, heads, T, E]`` -> ``[B * G, heads, C, E]``."""
        batch, group, longest = self._shape
        flat = part[0].transpose(0, 1).index_select(0, self._to_padded)
        return flat.reshape(batch * group, longest, *flat.shape[1:]).transpose(1, 2)


def _expand_heads(part: Tensor, query: Tensor) -> Tensor:
    """Keys or values with one head for each head of the query."""
    times = query.shape[1] // part.shape[1]
    return part if times == 1 else part.repeat_interleave(times, dim=1)
