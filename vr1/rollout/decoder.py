"""The language model for one more token in every row.

With few rows, a forward of transformers spends as much time on calls and small operators as on matrix products.
`LayerDecoder` computes the same in half as many operators, with the layers' own weights, for layers of the structure
that `vr1.policy.patches.SUPPORTED_LAYERS` names. `ModelDecoder` calls transformers, for all others.

Private parts of torch that this file relies on, tried with 2.11 and 2.15: the operators of ``torch.ops.mkl`` that
torch's own compiler uses for frozen weights, and ``_forward_hooks`` of modules.

Shape letters: R rows, D hidden size, H query heads, K key and value heads, E head width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vr1.policy.patches import SUPPORTED_LAYERS
from vr1.policy.policy import Policy
from vr1.rollout.cache import GroupCache

__all__ = ["Decoder", "LayerDecoder", "ModelDecoder", "fast_linear", "fast_rms_norm", "make_decoder"]

# Inputs [rows, in] -> outputs [rows, out].
Linear = Callable[[Tensor], Tensor]
# With more rows than this, reordered weights are no faster.
_MAX_REORDERED_ROWS = 32


def fast_linear(layers: Sequence[Any], rows: int) -> Linear:
    """Several linear layers of one input as one function, ``[rows, in]`` -> ``[rows, out of all layers]``.

    On a CPU, MKL multiplies few rows twice as fast by weights in an order of its own. The reordered copy lives as long
    as the rollout. Only weights that are trained are copied: the copy takes the memory of their gradients, which do not
    exist during a rollout, whereas a copy of frozen weights would need additional memory.

    Args:
        layers: linear layers, possibly with adapters or 4-bit weights.
        rows: rows of all inputs to come.

    Example:
        >>> layers = [nn.Linear(4, 3), nn.Linear(4, 2)]
        >>> rows = torch.randn(5, 4)
        >>> with torch.no_grad():
        ...     both = fast_linear(layers, rows=5)(rows)
        >>> torch.allclose(both, torch.cat([layer(rows) for layer in layers], dim=1), atol=1e-6)
        True
    """
    if rows <= _MAX_REORDERED_ROWS and all(_can_reorder(layer) for layer in layers):
        return _reordered_linear(layers, rows)
    if len(layers) == 1:
        return layers[0]
    return lambda inputs: torch.cat([layer(inputs) for layer in layers], dim=-1)


def _can_reorder(layer: Any) -> bool:
    if type(layer) is not nn.Linear or layer._forward_hooks or layer._forward_pre_hooks:
        return False
    weight = layer.weight
    plain = type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.dtype == torch.float32
    return plain and weight.requires_grad and not torch.is_autocast_enabled("cpu") and _has_mkl()


def _has_mkl() -> bool:
    """Whether torch is built with MKL and its operators for reordered weights."""
    return torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


def _reordered_linear(layers: Sequence[Any], rows: int) -> Linear:
    weights, biases = [layer.weight.detach() for layer in layers], [layer.bias for layer in layers]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    bias = None
    if any(part is not None for part in biases):
        bias = torch.cat(
            [
                weight.new_zeros(len(weight)) if part is None else part.detach()
                for weight, part in zip(weights, biases, strict=True)
            ]
        )
    reordered = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    return lambda inputs: torch.ops.mkl._mkl_linear(inputs, reordered, weight, bias, rows)


# Tokens [R] and their rotary positions [R] -> float32 logits [R, V] of the next tokens.
Decoder = Callable[[Tensor, Tensor], Tensor]


def make_decoder(policy: Policy, cache: GroupCache, rows: int) -> Decoder:
    """The fastest decoder for the layers of a policy.

    Args:
        policy: a policy that shares prompts.
        cache: keys and values; grows by one token with every call of the decoder.
        rows: rows of every call.
    """
    layers = {type(layer).__name__ for layer in policy.base.model.language_model.layers}
    return LayerDecoder(policy, cache, rows) if layers <= SUPPORTED_LAYERS else ModelDecoder(policy, cache)


class ModelDecoder:
    """Decodes with the forward of transformers; arguments as for `make_decoder`."""

    def __init__(self, policy: Policy, cache: GroupCache) -> None:
        self.policy, self.cache = policy, cache

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits ``[R, V]``; see `Decoder`."""
        inputs = self.policy.inputs(tokens[:, None])
        states = self.policy.hidden_states(inputs, self.policy.text_positions(positions[:, None]), self.cache)
        return self.policy.logits(states[:, -1])


class LayerDecoder:
    """Decodes layer by layer with fewer operators; arguments as for `make_decoder`."""

    def __init__(self, policy: Policy, cache: GroupCache, rows: int) -> None:
        text = policy.base.model.language_model
        self.policy, self.embed, self.rotary = policy, policy.base.get_input_embeddings(), text.rotary_emb
        self.layers = [_Layer(layer, number, cache, rows) for number, layer in enumerate(text.layers)]
        self.norm, self.lm_head = fast_rms_norm(text.norm), fast_linear([policy.base.lm_head], rows)

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits ``[R, V]``; see `Decoder`."""
        states = self.embed(tokens)
        assert self.policy.architecture is not None
        position_ids = self.policy.architecture.position_ids(self.policy.text_positions(positions[:, None]))
        cosine, sine = self.rotary(states, position_ids)
        # Rotation is x * cos + (-second half, first half) * sin. With the signs in the sine, the halves only swap.
        half = sine.shape[-1] // 2
        signed_sine = torch.cat([-sine[..., :half], sine[..., half:]], dim=-1)
        for layer in self.layers:
            states = layer(states, cosine, signed_sine)
        return self.lm_head(self.norm(states)).float()


class _Layer:
    """One layer of the language model."""

    def __init__(self, layer: Any, number: int, cache: GroupCache, rows: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.number, self.cache, self.scaling = number, cache, attention.scaling
        self.head_width = attention.head_dim
        self.attention_norm, self.mlp_norm = (
            fast_rms_norm(norm) for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        )
        # Qwen3 normalizes queries and keys; the other supported layers do not.
        self.qk_norms = [
            fast_rms_norm(getattr(attention, name)) for name in ("q_norm", "k_norm") if hasattr(attention, name)
        ]
        self.qkv_proj = fast_linear([attention.q_proj, attention.k_proj, attention.v_proj], rows)
        self.o_proj = fast_linear([attention.o_proj], rows)
        self.gate_proj, self.up_proj, self.down_proj = (
            fast_linear([part], rows) for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        )
        self.activation = mlp.act_fn

    def __call__(self, states: Tensor, cosine: Tensor, signed_sine: Tensor) -> Tensor:
        """States ``[R, D]`` after the layer.

        Args:
            states: ``[R, D]``.
            cosine: ``[R, 1, E]``.
            signed_sine: ``[R, 1, E]``, its first half negated.
        """
        heads = self.qkv_proj(self.attention_norm(states)).view(len(states), -1, self.head_width)
        kv_heads = self.cache.kv_heads
        query, keys_and_values = heads[:, : -2 * kv_heads], heads[:, -2 * kv_heads :]
        for norm, part in zip(self.qk_norms, (query, keys_and_values[:, :kv_heads]), strict=False):
            part.copy_(norm(part))
        qk = heads[:, :-kv_heads]
        qk_swapped = qk.roll(self.head_width // 2, dims=-1)
        # In place, so that query and keys_and_values, which are views, are rotated.
        torch.addcmul(qk * cosine, qk_swapped, signed_sine, out=qk)
        states = states + self.o_proj(self.cache.attend(self.number, query * self.scaling, keys_and_values))
        normed = self.mlp_norm(states)
        return states + self.down_proj(self.activation(self.gate_proj(normed)).mul_(self.up_proj(normed)))


def fast_rms_norm(norm: Any) -> Callable[[Tensor], Tensor]:
    """An RMS norm of transformers as a function ``[..., D]`` -> ``[..., D]`` of fewer operators, in float32.

    ``x * rsqrt(mean(x^2) + epsilon) * weight``. Other precisions use the norm itself.

    Args:
        norm: with ``weight`` ``[D]`` and ``variance_epsilon``.
    """
    weight = norm.weight
    epsilon, inverse_width = torch.full((), norm.variance_epsilon, device=weight.device), 1 / len(weight)

    def normed(states: Tensor) -> Tensor:
        if states.dtype != torch.float32:
            return norm(states)  # type: ignore[no-any-return]
        length = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        scale = torch.addcmul(epsilon, length, length, value=inverse_width).rsqrt_()
        return (states * scale).mul_(weight)

    return normed
