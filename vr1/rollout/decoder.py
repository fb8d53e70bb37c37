"""The language model for one more token in every row.

A forward of transformers spends as long on calls and small operators as on products when rows are few. `LayerDecoder`
does the same work in half as many operators, on the layers' own weights; `ModelDecoder` asks transformers, for layers
that are built in another way.

Shape letters: R rows, D hidden size, H query heads, K key and value heads, E width of a head, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vr1.policy.patches import KNOWN_LAYERS
from vr1.policy.policy import Policy
from vr1.rollout.cache import GroupCache

Product = Callable[[Tensor], Tensor]
# With more rows than this, weights as they lie are as fast.
_ROWS = 32


def product(layers: Sequence[Any], rows: int) -> Product:
    """The outputs of linear layers side by side, ``[rows, in]`` -> ``[rows, out of the first + ...]``.

    On a CPU, MKL multiplies few rows twice as fast by weights that it has rearranged. The copy lives as long as the
    rollout, and is made of weights that are being trained only: it takes the room of their gradients, which are not
    there during a rollout, where a copy of frozen ones would come on top.

    Args:
        layers: linear layers of one input, adapters or 4-bit weights and all.
        rows: rows of all inputs that are to come.

    Example:
        >>> layers = [nn.Linear(4, 3), nn.Linear(4, 2)]
        >>> rows = torch.randn(5, 4)
        >>> with torch.no_grad():
        ...     both = product(layers, rows=5)(rows)
        >>> torch.allclose(both, torch.cat([layer(rows) for layer in layers], dim=1), atol=1e-6)
        True
    """
    if rows <= _ROWS and all(_can_be_rearranged(layer) for layer in layers):
        return _rearranged(layers, rows)
    if len(layers) == 1:
        return layers[0]
    return lambda inputs: torch.cat([layer(inputs) for layer in layers], dim=-1)


def _can_be_rearranged(layer: Any) -> bool:
    if type(layer) is not nn.Linear or layer._forward_hooks or layer._forward_pre_hooks:
        return False
    weight = layer.weight
    plain = type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.dtype == torch.float32
    return plain and weight.requires_grad and not torch.is_autocast_enabled("cpu") and _has_mkl()


def _has_mkl() -> bool:
    """Whether torch is built with MKL, and with the operators that its own compiler uses for frozen weights."""
    return torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


def _rearranged(layers: Sequence[Any], rows: int) -> Product:
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
    rearranged = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    return lambda inputs: torch.ops.mkl._mkl_linear(inputs, rearranged, weight, bias, rows)


# Tokens [R] and their rotary positions [R] -> float32 logits [R, V] of the tokens that follow.
Decoder = Callable[[Tensor, Tensor], Tensor]


def decoder(policy: Policy, cache: GroupCache, rows: int) -> Decoder:
    """What runs the language model of a policy that shares prompts.

    Args:
        policy: the policy.
        cache: keys and values; grows by a token with every call.
        rows: rows of every call.
    """
    known = {type(layer).__name__ for layer in policy.base.model.language_model.layers} <= KNOWN_LAYERS
    return LayerDecoder(policy, cache, rows) if known else ModelDecoder(policy, cache)


class ModelDecoder:
    """The forward of transformers; arguments as for `decoder`."""

    def __init__(self, policy: Policy, cache: GroupCache) -> None:
        self.policy, self.cache = policy, cache

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits ``[R, V]``; see `Decoder`."""
        inputs = self.policy.inputs(tokens[:, None])
        states = self.policy.hidden(inputs, self.policy.text_positions(positions[:, None]), self.cache)
        return self.policy.logits(states[:, -1])


class LayerDecoder:
    """Layer by layer; arguments as for `decoder`."""

    def __init__(self, policy: Policy, cache: GroupCache, rows: int) -> None:
        text = policy.base.model.language_model
        self.policy, self.embed, self.rotary = policy, policy.base.get_input_embeddings(), text.rotary_emb
        self.layers = [_Layer(layer, number, cache, rows) for number, layer in enumerate(text.layers)]
        self.norm, self.head = rms_norm(text.norm), product([policy.base.lm_head], rows)

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits ``[R, V]``; see `Decoder`."""
        states = self.embed(tokens)
        assert self.policy.architecture is not None
        places = self.policy.architecture.position_ids(self.policy.text_positions(positions[:, None]))
        cosine, sine = self.rotary(states, places)
        # Turned is x * cos + (-second half, first half) * sin; with these signs the halves need only change places.
        half = sine.shape[-1] // 2
        signed = torch.cat([-sine[..., :half], sine[..., half:]], dim=-1)
        for layer in self.layers:
            states = layer(states, cosine, signed)
        return self.head(self.norm(states)).float()


class _Layer:
    """One layer of the language model."""

    def __init__(self, layer: Any, number: int, cache: GroupCache, rows: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.number, self.cache, self.scaling = number, cache, attention.scaling
        self.head = attention.head_dim
        self.before_attention, self.before_mlp = (
            rms_norm(norm) for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        )
        self.norms = [rms_norm(getattr(attention, name)) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
        self.looking = product([attention.q_proj, attention.k_proj, attention.v_proj], rows)
        self.out = product([attention.o_proj], rows)
        self.gate, self.up, self.down = (product([part], rows) for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        self.activation = mlp.act_fn

    def __call__(self, states: Tensor, cosine: Tensor, signed_sine: Tensor) -> Tensor:
        """States ``[R, D]`` after the layer; cosine and signed sine ``[R, 1, E]``."""
        heads = self.looking(self.before_attention(states)).view(len(states), -1, self.head)
        shared = self.cache.shared_heads
        query, own = heads[:, : -2 * shared], heads[:, -2 * shared :]
        for norm, part in zip(self.norms, (query, own[:, :shared]), strict=False):
            part.copy_(norm(part))
        turned = heads[:, :-shared]
        swapped = turned.roll(self.head // 2, dims=-1)
        torch.addcmul(turned * cosine, swapped, signed_sine, out=turned)
        states = states + self.out(self.cache.attend(self.number, query * self.scaling, own))
        inner = self.before_mlp(states)
        return states + self.down(self.activation(self.gate(inner)).mul_(self.up(inner)))


def rms_norm(norm: Any) -> Callable[[Tensor], Tensor]:
    """What an RMS norm of transformers makes of ``[..., D]``, in float32 by fewer operators."""
    weight = norm.weight
    epsilon, share = torch.full((), norm.variance_epsilon, device=weight.device), 1 / len(weight)

    def normed(states: Tensor) -> Tensor:
        if states.dtype != torch.float32:
            return norm(states)  # type: ignore[no-any-return]
        length = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        scale = torch.addcmul(epsilon, length, length, value=share).rsqrt_()
        return (states * scale).mul_(weight)

    return normed
