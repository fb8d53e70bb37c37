"""Attention among completions that share a prompt: computed between tokens that see each other, and no others.

transformers lets a model's attention be replaced by a registered function; `attend` is that function. Which tokens see
which travels with each call as ``sharing``: `PromptAttention` for prompts, `CompletionAttention` for completions after
their prompts, `vr1.rollout.cache.GroupCache` for single new tokens. Without it, `attend` is plain attention.

On a CPU, plain attention of completions is a function in C each way (`vr1.cpu_kernels.completion_attention`).

Gemma 2 caps its scores (``cap * tanh(score / cap)``), and every other of its layers sees a window: the last W tokens.
Torch's fused attention does not cap, so `capped_attention` computes the scores themselves.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens, T completion tokens of all rows together,
H query heads, K key and value heads, E head width, Q queries, S keys, W tokens of a window.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from vr1.cpu_kernels import completion_attention
from vr1.cpu_kernels.completion_attention import Completions, Inputs
from vr1.policy.products import multiply_into_float32
from vr1.types import Prefix

__all__ = ["CompletionAttention", "PromptAttention", "Scores", "Sharing", "attend", "capped_attention"]


@dataclass(frozen=True, slots=True)
class Scores:
    """How a layer computes its attention's scores.

    Args:
        scaling: factor on the products of queries and keys.
        cap: bound of the scores, approached by tanh; None for no bound.
        window: a token sees itself and as many tokens before it that they are this many; None for all.
        dropout: probability that a weight of the attention is 0 in this call.
    """

    scaling: float
    cap: float | None = None
    window: int | None = None
    dropout: float = 0.0


class Sharing(Protocol):
    """The attention of one layer in one call of the language model."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Compute the attention of a layer.

        Args:
            layer: number of the layer, from 0.
            query: ``[rows, H, Q, E]``.
            key: ``[rows, K, S, E]``.
            value: ``[rows, K, S, E]``.
            scores: how scores are computed.

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
        sharing: decides which tokens see which; None computes transformers' own attention.
        settings: further arguments of transformers: ``scaling``; ``dropout``, which is 0 outside of training; and
            ``softcap`` and ``sliding_window`` of some models.

    Returns:
        ``[rows, Q, H, E]``, and None for the attention weights.
    """
    cap, dropout = settings.get("softcap"), settings.get("dropout", 0.0)
    if sharing is not None:
        scores = Scores(settings["scaling"], cap, settings.get("sliding_window"), dropout)
        return sharing(module.layer_idx, query, key, value, scores), None
    if cap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    # Windows are part of the mask here.
    if attention_mask is None:
        attention_mask = causal_mask(query.shape[2], key.shape[2], None, query.device)
    keys, values = (_expand_heads(part, query) for part in (key, value))
    result = capped_attention(query, keys, values, attention_mask, settings["scaling"], cap, dropout)
    return result.transpose(1, 2), None


def capped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor,
    scaling: float,
    cap: float,
    dropout: float = 0.0,
) -> Tensor:
    """Attention with scores ``cap * tanh(q k scaling / cap)``, which are float32 in every precision.

    Args:
        query: ``[..., Q, E]``.
        key: ``[..., S, E]``.
        value: ``[..., S, E]``.
        visible: ``[..., Q, S]`` bool, true where a query sees a key.
        scaling: factor on the products.
        cap: bound of the scores.
        dropout: probability that a weight is 0.

    Returns:
        ``[..., Q, E]``.

    Example:
        >>> one = torch.ones(1, 1, 4)
        >>> bool((capped_attention(one, one, one, torch.ones(1, 1, dtype=torch.bool), 0.5, 50.0) == 1).all())
        True

    Source: Gemma 2, arXiv 2408.00118, section 2.
    """
    products = multiply_into_float32(query.flatten(0, -3), key.flatten(0, -3).transpose(-1, -2))
    scores = torch.tanh(products.view(*query.shape[:-1], -1) * scaling / cap) * cap
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1).to(query.dtype)
    return F.dropout(weights, dropout) @ value


def causal_mask(queries: int, keys: int, window: int | None, device: Any) -> Tensor:
    """Which keys each of the last tokens of a row sees: itself and those before it, within the window if there is one.

    Args:
        queries: Q, tokens at the end of the row.
        keys: S, tokens of the row.
        window: W, itself among them; None for all.
        device: of the result.

    Returns:
        ``[Q, S]`` bool.

    Example:
        >>> causal_mask(2, 3, 2, "cpu").int().tolist()
        [[1, 1, 0], [0, 1, 1]]
    """
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


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
        self._mask, self._is_full = mask, bool(mask.all())
        # By window; None where causal attention without a mask is the same.
        self._visible: dict[int | None, Tensor | None] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Attention of one layer; see `Sharing`."""
        # A layer that backward recomputes has stored its keys and values the first time.
        if layer == len(self.keys):
            self.keys.append(key)
            self.values.append(value)
        keys, values = (_expand_heads(part, query) for part in (key, value))
        visible = self._visible_in(scores)
        if scores.cap is not None:
            assert visible is not None
            result = capped_attention(query, keys, values, visible, scores.scaling, scores.cap, scores.dropout)
        else:
            result = F.scaled_dot_product_attention(
                query,
                keys,
                values,
                attn_mask=visible,
                dropout_p=scores.dropout,
                is_causal=visible is None,
                scale=scores.scaling,
            )
        return result.transpose(1, 2)

    def _visible_in(self, scores: Scores) -> Tensor | None:
        """``[B or 1, 1, P, P]`` bool; None where the causal attention of torch is the same."""
        width = self._mask.shape[1]
        window = scores.window if scores.window is not None and scores.window < width else None
        if self._is_full and window is None and scores.cap is None:
            return None
        if window not in self._visible:
            visible = causal_mask(width, width, window, self._mask.device)[None]
            if not self._is_full:
                # Padding sees itself: a softmax over nothing is NaN, which spreads through the layers above.
                itself = torch.eye(width, dtype=torch.bool, device=self._mask.device)
                visible = (visible & self._mask[:, None]) | itself
            self._visible[window] = visible[:, None]
        return self._visible[window]


class CompletionAttention:
    """Attention of completions laid end to end in one row: each sees its prompt and itself.

    A mask over the whole row would compute ``(P + G C)^2`` scores, of which ``G C (P + C)`` are used. So torch's
    attention gets a row for each completion, with the prompt's keys before its own keys.

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
        self._shape = (batch, group, longest)
        # One mask for all completions of a prompt, and for all prompts if they have the same length.
        self._prompt_mask = prefix.mask[:1] if bool(prefix.mask.all()) else prefix.mask.repeat_interleave(group, dim=0)
        self._visible: dict[int | None, Tensor] = {}
        self._mask = mask
        self._row: Completions | None = None

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Attention of one layer with one row; see `Sharing`."""
        inputs = Inputs(query, self._prefix.keys[layer], self._prefix.values[layer], key, value)
        is_plain = scores.cap is None and not scores.dropout and self._window(scores) is None
        if is_plain and completion_attention.can_attend(inputs):
            self._row = self._row or Completions.of(self._prefix.mask, self._mask)
            result: Tensor = _AttentionInC.apply(self._row, scores.scaling, *inputs)
            return result
        return self._by_torch(layer, query, key, value, scores)

    def _by_torch(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        batch, group, longest = self._shape
        heads, kv_heads, width = query.shape[1], key.shape[1], query.shape[3]
        keys, values = (
            torch.cat([of_prompts[layer].repeat_interleave(group, dim=0), self._padded(own)], dim=2)
            for of_prompts, own in ((self._prefix.keys, key), (self._prefix.values, value))
        )
        # Query heads that share a key head become more queries to it, so that keys and values need no copies.
        queries = self._padded(query).reshape(batch * group, kv_heads, -1, width)
        visible = self._visible_in(self._window(scores)).repeat(1, 1, heads // kv_heads, 1)
        if scores.cap is not None:
            result = capped_attention(queries, keys, values, visible, scores.scaling, scores.cap, scores.dropout)
        else:
            result = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=visible, dropout_p=scores.dropout, scale=scores.scaling
            )
        result = result.reshape(batch * group, heads, longest, width).transpose(1, 2).reshape(-1, heads, width)
        return result.index_select(0, self._to_row)[None]

    def _window(self, scores: Scores) -> int | None:
        """The window, if a token ever lies outside."""
        seen = self._shape[2] + self._prompt_mask.shape[1]
        return None if scores.window is None or scores.window >= seen else scores.window

    def _visible_in(self, window: int | None) -> Tensor:
        """``[B * G or 1, 1, C, P + C]`` bool; prompts are padded on the left, so distances count through them."""
        longest, width = self._shape[2], self._prompt_mask.shape[1]
        if window not in self._visible:
            visible = causal_mask(longest, width + longest, window, self._prompt_mask.device)
            present = F.pad(self._prompt_mask, (0, longest), value=True)
            self._visible[window] = (visible & present[:, None])[:, None]
        return self._visible[window]

    def _padded(self, part: Tensor) -> Tensor:
        """One row for each completion: ``[1, heads, T, E]`` -> ``[B * G, heads, C, E]``."""
        batch, group, longest = self._shape
        flat = part[0].transpose(0, 1).index_select(0, self._to_padded)
        return flat.reshape(batch * group, longest, *flat.shape[1:]).transpose(1, 2)


class _AttentionInC(torch.autograd.Function):
    """`vr1.cpu_kernels.completion_attention.attend`, with the inputs one by one."""

    @staticmethod
    def forward(ctx: Any, row: Completions, scaling: float, *inputs: Tensor) -> Tensor:
        output, totals = completion_attention.attend(Inputs(*inputs), row, scaling)
        ctx.save_for_backward(totals, *inputs)
        ctx.row, ctx.scaling = row, scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        totals, *inputs = ctx.saved_tensors
        found = completion_attention.attend_backward(gradients[0], Inputs(*inputs), totals, ctx.row, ctx.scaling)
        return None, None, *found


def _expand_heads(part: Tensor, query: Tensor) -> Tensor:
    """Keys or values with one head for each head of the query."""
    times = query.shape[1] // part.shape[1]
    return part if times == 1 else part.repeat_interleave(times, dim=1)
