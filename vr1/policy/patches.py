"""Changes to layers of transformers' models, which compute the same results in less time.

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

from vr1.policy.attention import PromptAttention

# Layers of one build: norm, attention with rotated halves, norm, gated linear unit; each part added to what came in.
KNOWN_LAYERS = frozenset(
    {
        "LlamaDecoderLayer",
        "Qwen2DecoderLayer",
        "Qwen2VLDecoderLayer",
        "Qwen2_5_VLDecoderLayer",
        "Qwen3DecoderLayer",
        "Qwen3VLTextDecoderLayer",
    }
)


class PatchProduct(nn.Conv3d):
    """A 3D convolution that meets inputs as large as its kernel, with the weights, names and results of any other."""

    def forward(self, input: Tensor) -> Tensor:
        """``[N, channels, *kernel]`` -> ``[N, out channels, 1, 1, 1]``; other sizes as a convolution."""
        if input.shape[1:] != self.weight.shape[1:]:
            return super().forward(input)
        return nn.functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


def as_products(network: nn.Module) -> None:
    """Turn the convolutions of patch embeddings in ``network`` into products, in place.

    Example:
        >>> import torch
        >>> patches = torch.randn(5, 3, 2, 4, 4)
        >>> network = nn.Sequential(nn.Conv3d(3, 8, kernel_size=(2, 4, 4), stride=(2, 4, 4)))
        >>> before = network(patches)
        >>> as_products(network)
        >>> bool((network(patches) - before).abs().max() < 1e-5)
        True
    """
    for layer in network.modules():
        if type(layer) is nn.Conv3d and layer.stride == layer.kernel_size and layer.groups == 1:
            layer.__class__ = PatchProduct


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


class _OneState:
    """Hooks of a layer's attention and its MLP, by which the MLP runs for the last token of each prompt."""

    reading = False

    def look(self, _attention: nn.Module, _inputs: Any, settings: dict[str, Any]) -> None:
        self.reading = isinstance(settings.get("sharing"), PromptAttention)

    def narrow(self, _mlp: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        # The layer adds what comes of it to all tokens: the others become something that nobody reads.
        return (inputs[0][:, -1:],) if self.reading else None


def one_state_of_prompts(network: Any) -> None:
    """Spare prompts the last layer's MLP but for their last token, in place; layers of another build stay as they are.

    Args:
        network: a vision-language model of transformers, adapters (if any) in place.
    """
    layer = network.model.language_model.layers[-1]
    if type(layer).__name__ in KNOWN_LAYERS:
        hooks = _OneState()
        # Inside of the layer, so that what is computed anew in backward passes them again.
        layer.self_attn.register_forward_pre_hook(hooks.look, with_kwargs=True)
        layer.mlp.register_forward_pre_hook(hooks.narrow)
