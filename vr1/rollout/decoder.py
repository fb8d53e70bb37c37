"""The language model for one more token in every row.

With few rows, a forward of transformers spends as much time on calls and small operators as on matrix products.
`LayerDecoder` computes the same in half as many operators, with the layers' own weights, for layers of the structure
that `vr1.policy.patches.SUPPORTED_LAYERS` names. `ModelDecoder` calls transformers, for all others.

Shape letters: R rows, D hidden size, H query heads, K key and value heads, E head width, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers.activations import SiLUActivation

from vr1.policy.attention import Scores
from vr1.policy.patches import SUPPORTED_LAYERS
from vr1.policy.policy import Policy
from vr1.policy.products import without_autocast
from vr1.rollout.cache import GroupCache, LayerKernels
from vr1.rollout.linear import prepare_head, prepare_linear, prepare_linears
from vr1.rollout.rotation import Rotation

__all__ = ["Decoder", "LayerDecoder", "ModelDecoder", "fast_rms_norm", "make_decoder", "runs_layers"]


class Decoder(ABC):
    """The language model for one more token in every row."""

    @abstractmethod
    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits of the next tokens, float32 ``[R, V]``.

        Args:
            tokens: ``[R]`` int64.
            positions: ``[R]`` int64, their rotary positions.
        """

    def set_rows(self, rows: int) -> None:
        """Say how many rows later calls have, since the cache has lost some."""
        del rows


def runs_layers(policy: Policy) -> bool:
    """Whether `LayerDecoder` knows the layers of a policy."""
    return {type(layer).__name__ for layer in policy.base.model.language_model.layers} <= SUPPORTED_LAYERS


def make_decoder(
    policy: Policy, cache: GroupCache, rows: int, dequantize: bool = False, end: int | None = None
) -> Decoder:
    """The fastest decoder for the layers of a policy.

    Args:
        policy: a policy that shares prompts.
        cache: keys and values; grows by one token with every call of the decoder.
        rows: rows of every call.
        dequantize: multiply with dequantized copies of 4-bit weights, which live as long as the decoder.
        end: all rotary positions will be below it, so that their angles can be computed once; None computes them for
            each token.
    """
    return LayerDecoder(policy, cache, rows, dequantize, end) if runs_layers(policy) else ModelDecoder(policy, cache)


class ModelDecoder(Decoder):
    """Decodes with the forward of transformers; arguments as for `make_decoder`."""

    def __init__(self, policy: Policy, cache: GroupCache) -> None:
        self.policy, self.cache = policy, cache

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits ``[R, V]``; see `Decoder`."""
        inputs = self.policy.inputs(tokens[:, None])
        states = self.policy.hidden_states(inputs, self.policy.text_positions(positions[:, None]), self.cache)
        return self.policy.logits(states[:, -1])


class LayerDecoder(Decoder):
    """Decodes layer by layer with fewer operators; arguments as for `make_decoder`."""

    def __init__(
        self, policy: Policy, cache: GroupCache, rows: int, dequantize: bool = False, end: int | None = None
    ) -> None:
        text = policy.base.model.language_model
        self.policy, self.embed = policy, policy.base.get_input_embeddings()
        self._rotation = Rotation(policy, end)
        self.norm, self._cache, self._dequantize = fast_rms_norm(text.norm, cache.layer_kernels), cache, dequantize
        self._prepare(rows)

    def set_rows(self, rows: int) -> None:
        """As of every decoder; on a CPU the weights are stored in an order that depends on the rows."""
        if next(self.policy.parameters()).device.type == "cpu":
            self._prepare(rows)

    def _prepare(self, rows: int) -> None:
        layers = self.policy.base.model.language_model.layers
        # One layer after another, so that few weights exist twice.
        self.layers: list[_Layer] = []
        self.layers = [
            _Layer(layer, number, self._cache, rows, self._dequantize) for number, layer in enumerate(layers)
        ]
        self.lm_head = prepare_head(self.policy.base.lm_head, rows)

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits ``[R, V]``; see `Decoder`."""
        # Every product has the precision that its layer was prepared for; autocast would round others too.
        with without_autocast(tokens.device.type):
            return self._logits(tokens, positions)

    def _logits(self, tokens: Tensor, positions: Tensor) -> Tensor:
        states = self.embed(tokens)
        cosine, signed_sine = self._rotation(states, positions)
        for layer in self.layers:
            states = layer(states, cosine, signed_sine)
        return self.lm_head(self.norm(states))


class _Layer:
    """One layer of the language model."""

    def __init__(self, layer: Any, number: int, cache: GroupCache, rows: int, dequantize: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.number, self.cache, self.scores = number, cache, Scores(attention.scaling)
        self.head_width = attention.head_dim
        self.attention_norm, self.mlp_norm = (
            fast_rms_norm(norm, cache.layer_kernels) for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        )
        # Qwen3 normalizes queries and keys; the other supported layers do not.
        self.qk_norms = [
            fast_rms_norm(getattr(attention, name)) for name in ("q_norm", "k_norm") if hasattr(attention, name)
        ]
        self.qkv_proj = prepare_linear([attention.q_proj, attention.k_proj, attention.v_proj], rows, dequantize)
        self.o_proj, self.down_proj = (
            prepare_linear([part], rows, dequantize) for part in (attention.o_proj, mlp.down_proj)
        )
        self.gate_and_up = prepare_linears([mlp.gate_proj, mlp.up_proj], rows, dequantize)
        self.gated = _gate(mlp.act_fn, cache.layer_kernels)

    def __call__(self, states: Tensor, cosine: Tensor, signed_sine: Tensor) -> Tensor:
        """States ``[R, D]`` after the layer.

        Args:
            states: ``[R, D]``.
            cosine: ``[R, 1, E]``.
            signed_sine: ``[R, 1, E]``, its first half negated.
        """
        heads = self.qkv_proj(self.attention_norm(states)).view(len(states), -1, self.head_width)
        kv_heads = self.cache.kv_heads
        parts = heads[:, : -2 * kv_heads], heads[:, -2 * kv_heads : -kv_heads]
        for norm, part in zip(self.qk_norms, parts, strict=False):
            part.copy_(norm(part))
        attended = self.cache.rotate_and_attend(self.number, heads, cosine, signed_sine, self.scores)
        states = self.o_proj(attended, residual=states)
        return self.down_proj(self.gated(*self.gate_and_up(self.mlp_norm(states))), residual=states)


def _gate(activation: Callable[[Tensor], Tensor], kernels: LayerKernels | None) -> Callable[[Tensor, Tensor], Tensor]:
    """``activation(gate) * up`` of ``[R, D]`` each."""
    if kernels is not None and isinstance(activation, (nn.SiLU, SiLUActivation)):
        return kernels.gated
    return lambda gate, up: activation(gate).mul_(up)


def fast_rms_norm(norm: Any, kernels: LayerKernels | None = None) -> Callable[[Tensor], Tensor]:
    """An RMS norm of transformers as a function ``[..., D]`` -> ``[..., D]`` of fewer operators, in float32.

    ``x * rsqrt(mean(x^2) + epsilon) * weight``. Half precisions use torch's own, one kernel on a GPU, which computes in
    float32.

    Args:
        norm: with ``weight`` ``[D]`` and ``variance_epsilon``.
        kernels: by that of these, of contiguous ``[R, D]``.
    """
    weight = norm.weight
    if kernels is not None:
        return lambda states: kernels.rms_norm(states, weight, norm.variance_epsilon)
    epsilon, inverse_width = torch.full((), norm.variance_epsilon, device=weight.device), 1 / len(weight)

    def normed(states: Tensor) -> Tensor:
        if states.dtype != torch.float32:
            return rms_norm(states, weight.shape, weight.to(states.dtype), norm.variance_epsilon)
        length = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        scale = torch.addcmul(epsilon, length, length, value=inverse_width).rsqrt_()
        return (states * scale).mul_(weight)

    return normed
