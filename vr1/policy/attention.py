"""Attention among completions that share a prompt, computed where there is something to see and nowhere else.

transformers lets a model's attention be replaced by a function of one's own; `attend` is that function. What decides
who sees whom travels with the call as ``sharing``: `PackedAttention` for the packed rows of training, and the rollout's
cache. A call without it is plain scaled-dot-product attention.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens, L tokens of a packed row, H query heads,
K key and value heads, E width of a head, Q queries, S keys.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from vr1.policy.packing import PackedRows

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


class PackedAttention:
    """Attention of packed rows: the prompt among itself, each completion to the prompt and to itself.

    A mask over whole rows would cost (P + G C)^2 for P^2 + G C (P + C) of use. So the prompts are one call, and the
    completions another, in which each has a row of its own with the prompt's keys before its own.

    Args:
        rows: the packed rows.
    """

    def __init__(self, rows: PackedRows) -> None:
        batch, group, _ = rows.mask.shape
        device = rows.tokens.device
        self.prompt_width = width = int(rows.prompt_lengths.max())
        longest = max(1, int(rows.mask.sum(-1).max()))
        kept, columns = rows.mask[..., :longest], rows.completion_columns[..., :longest]
        length = rows.tokens.shape[1]
        first = torch.arange(batch, device=device)[:, None, None] * length
        # Where the tokens of each completion stand among those of all rows; what is padding points at some token.
        self.places = torch.where(kept, columns + first, 0).flatten()
        # Where each token's result stands: the prompts' come first, then the completions'.
        found = torch.arange(width, device=device)[None] + torch.arange(batch, device=device)[:, None] * width
        restore = torch.zeros(batch, length, dtype=torch.long, device=device)
        restore[:, :width] = found
        order = torch.arange(self.places.numel(), device=device) + batch * width
        restore.view(-1)[self.places[kept.flatten()]] = order[kept.flatten()]
        self.restore = restore.flatten()
        in_prompt = torch.arange(width, device=device) < rows.prompt_lengths[:, None]
        before = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
        seen = torch.cat([in_prompt[:, None].expand(-1, longest, -1), before.expand(batch, -1, -1)], dim=-1)
        # One mask for all completions of a prompt, and for all prompts where they are of one length.
        self.seen = seen[:1, None] if bool(in_prompt.all()) else seen.repeat_interleave(group, dim=0)[:, None]
        self.shape = (batch, group, longest)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention of one layer; see `Sharing`."""
        batch, group, longest = self.shape
        width = self.prompt_width
        prompt_keys, prompt_values = (_repeated(part[:, :, :width], query) for part in (key, value))
        prompts = scaled_dot_product_attention(
            query[:, :, :width], prompt_keys, prompt_values, is_causal=True, scale=scaling
        )
        heads, head = query.shape[1], query.shape[3]
        keys, values = (
            torch.cat([part[:, None, :, :width].expand(-1, group, -1, -1, -1).flatten(0, 1), self._own(part)], dim=2)
            for part in (key, value)
        )
        # Query heads that share a key head are further queries to it: keys and values need no copies.
        shared = keys.shape[1]
        queries = self._own(query).reshape(batch * group, shared, -1, head)
        seen = self.seen.repeat(1, 1, heads // shared, 1)
        own = scaled_dot_product_attention(queries, keys, values, attn_mask=seen, scale=scaling)
        own = own.reshape(batch * group, heads, longest, head).transpose(1, 2).reshape(-1, heads, head)
        together = torch.cat([prompts.transpose(1, 2).reshape(-1, heads, head), own])
        return together.index_select(0, self.restore).reshape(batch, -1, heads, head)

    def _own(self, part: Tensor) -> Tensor:
        """The completions' share ``[B * G, heads, C, E]`` of ``[B, heads, L, E]``."""
        batch, group, longest = self.shape
        flat = part.transpose(1, 2).flatten(0, 1).index_select(0, self.places)
        return flat.reshape(batch * group, longest, *flat.shape[1:]).transpose(1, 2)


def _repeated(part: Tensor, query: Tensor) -> Tensor:
    """Keys or values with a head for each of the query's."""
    times = query.shape[1] // part.shape[1]
    return part if times == 1 else part.repeat_interleave(times, dim=1)
