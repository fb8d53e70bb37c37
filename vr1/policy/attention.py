"""Attention among completions that share a prompt, computed where there is something to see and nowhere else.

transformers lets a model's attention be replaced by a function of one's own; `attend` is that function. What decides
who sees whom travels with the call as ``sharing``: `PromptAttention` for prompts, `CompletionAttention` for the
completions that follow them, and the rollout's cache. A call without it is plain scaled-dot-product attention.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens, T completion tokens of all rows together,
H query heads, K key and value heads, E width of a head, Q queries, S keys.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from vr1.types import Prefix

NAME = "vr1"


class Sharing(Protocol):
    """Decides who sees whom in one call of the language model."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """``[rows, H, Q, E]``, ``[rows, K, S, E]`` twice -> ``[rows, Q, H, E]``."""
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
    """The attention of one layer as transformers calls for it; ``[rows, Q, H, E]``."""
    if sharing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    return sharing(module.layer_idx, query, key, value, settings["scaling"]), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


class PromptAttention:
    """Causal attention of prompts padded on the left, which remembers their keys and values.

    Args:
        mask: ``[B, P]`` bool, true on tokens.

    Attributes:
        keys: ``[B, K, P, E]`` of each layer, from that layer's call on.
        values: likewise.
    """

    def __init__(self, mask: Tensor) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.seen: Tensor | None = None
        if not bool(mask.all()):
            width = mask.shape[1]
            before = torch.ones(width, width, dtype=torch.bool, device=mask.device).tril()
            # Padding sees itself: a softmax over nothing would be NaN, and go on into what its layer above makes of it.
            itself = torch.eye(width, dtype=torch.bool, device=mask.device)
            self.seen = ((before & mask[:, None]) | itself)[:, None]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention of one layer; see `Sharing`."""
        # What a layer computes anew in backward has gone on from it the first time.
        if layer == len(self.keys):
            self.keys.append(key)
            self.values.append(value)
        keys, values = (_repeated(part, query) for part in (key, value))
        result = scaled_dot_product_attention(
            query, keys, values, attn_mask=self.seen, is_causal=self.seen is None, scale=scaling
        )
        return result.transpose(1, 2)


class CompletionAttention:
    """Attention of completions laid end to end in one row: each sees its prompt and itself.

    A mask over the whole row would cost (P + G C)^2 for G C (P + C) of use. So each completion has a row of its own
    here, with the prompt's keys before its own.

    Args:
        prefix: the prompts.
        mask: ``[B, G, C]`` bool, true on the tokens of the completions, one at least: the row's T tokens in that order.
    """

    def __init__(self, prefix: Prefix, mask: Tensor) -> None:
        self.prefix = prefix
        batch, group, _ = mask.shape
        longest = int(mask.sum(-1).max())
        kept = mask[..., :longest].flatten()
        # Where each token stands in the row, and from which place its result comes; padding points at some token.
        self.places = (kept.cumsum(0) - 1).clamp(min=0)
        self.restore = kept.nonzero()[:, 0]
        before = torch.ones(longest, longest, dtype=torch.bool, device=mask.device).tril()
        seen = torch.cat([prefix.mask[:, None].expand(-1, longest, -1), before.expand(batch, -1, -1)], dim=-1)
        # One mask for all completions of a prompt, and for all prompts where they are of one length.
        self.seen = seen[:1, None] if bool(prefix.mask.all()) else seen.repeat_interleave(group, dim=0)[:, None]
        self.shape = (batch, group, longest)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention of one layer, rows being one; see `Sharing`."""
        batch, group, longest = self.shape
        heads, shared, head = query.shape[1], key.shape[1], query.shape[3]
        keys, values = (
            torch.cat([of_prompts[layer].repeat_interleave(group, dim=0), self._apart(own)], dim=2)
            for of_prompts, own in ((self.prefix.keys, key), (self.prefix.values, value))
        )
        # Query heads that share a key head are further queries to it: keys and values need no copies.
        queries = self._apart(query).reshape(batch * group, shared, -1, head)
        seen = self.seen.repeat(1, 1, heads // shared, 1)
        result = scaled_dot_product_attention(queries, keys, values, attn_mask=seen, scale=scaling)
        result = result.reshape(batch * group, heads, longest, head).transpose(1, 2).reshape(-1, heads, head)
        return result.index_select(0, self.restore)[None]

    def _apart(self, part: Tensor) -> Tensor:
        """A row for each completion, ``[B * G, heads, C, E]`` of ``[1, heads, T, E]``."""
        batch, group, longest = self.shape
        flat = part[0].transpose(0, 1).index_select(0, self.places)
        return flat.reshape(batch * group, longest, *flat.shape[1:]).transpose(1, 2)


def _repeated(part: Tensor, query: Tensor) -> Tensor:
    """Keys or values with a head for each of the query's."""
    times = query.shape[1] // part.shape[1]
    return part if times == 1 else part.repeat_interleave(times, dim=1)
