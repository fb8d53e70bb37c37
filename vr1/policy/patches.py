"""All changes that vr1 makes to a model of transformers, in one place: `apply_patches` is the entry.

| change | classes | why |
|---|---|---|
| patch embedding as a matrix product | ``Conv3d`` whose stride is its kernel (Qwen-VL) | the convolution is slower |
| attention windows of the vision tower in batches | ``Qwen2_5_VLVisionAttention`` | one call a window is slow |
| attention function ``vr1`` (`vr1.policy.attention.attend`) | language models that share prompts | who sees whom |
| last layer's MLP for one token a prompt | the layers in `SUPPORTED_LAYERS` | nothing reads the other tokens |
| logits in float32 | the head, a ``Linear`` layer | 16 bits round them |
| RMS norms in fewer operators (`vr1.policy.norms`) | `vr1.policy.norms.RMS_NORMS` | thirty passes and copies |
| gated MLPs that store less (`vr1.policy.gates`) | `vr1.policy.gates.GATED_MLPS` with SiLU | the largest tensors |
| rotary positions in one pass (`vr1.policy.rotary`) | attention in `SUPPORTED_LAYERS`, and above | six on a CPU |
| adapters added by a product (`vr1.policy.adapters`) | peft's LoRA ``Linear``, ``Linear4bit`` | copies of inputs |
| no gradients of embeddings | models with hooks of ``enable_input_require_grads`` | no backward of vision |
| no repacked 4-bit weights | ``bitsandbytes.nn.Linear4bit`` | repacked weights have no gradient on CPUs |

All but the attention function compute what the unpatched model computes, up to rounding. Weights, their names and
checkpoints stay as they are.

Private parts of transformers that this file relies on, tried with 5.23: ``_require_grads_hooks`` and
``_no_split_modules`` of models, ``_attn_implementation`` of configs. Of bitsandbytes, tried with 0.50:
``support_avx512bf16_for_cpu`` of layers.

Shape letters: N patches of all images, W windows, L patches of a window, H heads, E head width, D hidden size.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
)

from vr1.policy.adapters import fuse_adapters
from vr1.policy.attention import PromptAttention, attend
from vr1.policy.gates import GATED_MLPS, fuse_gate
from vr1.policy.norms import RMS_NORMS, fuse_norm
from vr1.policy.products import Float32Head
from vr1.policy.rotary import fuse_rotation, fused_rotation

__all__ = ["SUPPORTED_LAYERS", "apply_patches", "four_bit_layers", "transformer_blocks"]

# Decoder layers of one structure: norm, attention with rotated halves, norm, gated MLP; both added to their input.
SUPPORTED_LAYERS = frozenset(
    {
        "LlamaDecoderLayer",
        "Qwen2DecoderLayer",
        "Qwen2VLDecoderLayer",
        "Qwen2_5_VLDecoderLayer",
        "Qwen3DecoderLayer",
        "Qwen3VLTextDecoderLayer",
    }
)

_ATTENTION = "vr1"
AttentionInterface.register(_ATTENTION, attend)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
_rotate = fused_rotation(apply_rotary_pos_emb_vision, heads=-2)


def apply_patches(network: nn.Module, share_prompts: bool = False) -> None:
    """Change a model in place as the table of this module says.

    Args:
        network: a vision-language model of transformers with its adapters, if any, in place (of a peft model, its base
            model). Parts of other classes stay as they are.
        share_prompts: the completions of a prompt will share its keys and values; needs a model with an
            `vr1.policy.architectures.Architecture`.

    Example:
        >>> patches = torch.randn(5, 3, 2, 4, 4)
        >>> network = nn.Sequential(nn.Conv3d(3, 8, kernel_size=(2, 4, 4), stride=(2, 4, 4)))
        >>> before = network(patches)
        >>> apply_patches(network)
        >>> bool((network(patches) - before).abs().max() < 1e-5)
        True
    """
    for part in network.modules():
        _patch(part)
    fuse_adapters(network)
    for layer in four_bit_layers(network).values():
        # On some CPUs bitsandbytes repacks the weights at the first forward in evaluation, for good, for a product
        # without gradient: layers below could no longer be trained.
        layer.support_avx512bf16_for_cpu = False
    # What reentrant checkpointing needs and vr1's does not: with it, backward runs through a frozen vision tower.
    if isinstance(network, PreTrainedModel) and getattr(network, "_require_grads_hooks", None):
        network.disable_input_require_grads()
    if isinstance(network, PreTrainedModel) and type(head := network.get_output_embeddings()) is nn.Linear:
        head.__class__ = Float32Head
    if share_prompts:
        assert isinstance(network, PreTrainedModel)
        network.config.get_text_config()._attn_implementation = _ATTENTION
        _narrow_last_mlp(network)


def _patch(part: Any) -> None:
    """Change a single module, as far as its class is in the table."""
    name = type(part).__name__
    if type(part) is nn.Conv3d and part.stride == part.kernel_size and part.groups == 1:
        part.__class__ = _PatchProduct
    elif type(part) is Qwen2_5_VLVisionAttention:
        part.__class__ = _BatchedWindowAttention
    elif name in RMS_NORMS:
        fuse_norm(part)
    elif name in GATED_MLPS:
        fuse_gate(part)
    elif name in SUPPORTED_LAYERS:
        fuse_rotation(part.self_attn)


def four_bit_layers(network: nn.Module) -> dict[str, Any]:
    """The 4-bit linear layers of a model by name; bitsandbytes is imported for quantized models only."""
    if not isinstance(network, PreTrainedModel) or getattr(network.config, "quantization_config", None) is None:
        return {}
    from bitsandbytes.nn import Linear4bit

    return {name: layer for name, layer in network.named_modules() if isinstance(layer, Linear4bit)}


def transformer_blocks(network: PreTrainedModel) -> list[nn.Module]:
    """The repeated blocks of a model, vision tower and language model alike, which strategies shard one by one."""
    names = set(network._no_split_modules or ())
    return [part for part in network.modules() if type(part).__name__ in names]


class _PatchProduct(nn.Conv3d):
    """A 3D convolution of inputs as large as its kernel, computed as a matrix product."""

    def forward(self, input: Tensor) -> Tensor:
        """``[N, channels, *kernel]`` -> ``[N, out channels, 1, 1, 1]``; other sizes as a convolution."""
        if input.shape[1:] != self.weight.shape[1:]:
            return super().forward(input)
        return F.linear(input.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


class _BatchedWindowAttention(Qwen2_5_VLVisionAttention):
    """Qwen2.5-VL's vision attention with all windows of one length in one call."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, cu_seqlens: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **settings: Any
    ) -> Tensor:
        """Attention among the patches of each window.

        Args:
            hidden_states: ``[N, D]``, window after window.
            cu_seqlens: ``[W + 1]``, where each window begins, and N.
            position_embeddings: cosine and sine ``[N, E]`` of the rotary positions.
            settings: further arguments of transformers.

        Returns:
            ``[N, D]``.
        """
        if self.config._attn_implementation != "sdpa":
            return super().forward(hidden_states, cu_seqlens, position_embeddings=position_embeddings, **settings)
        parts = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = parts.unbind(1)
        query, key = _rotate(query, key, *position_embeddings)
        return self.proj(_attend_in_windows(query, key, value, cu_seqlens, self.scaling).flatten(1))


def _attend_in_windows(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, scaling: float) -> Tensor:
    """Attention within windows that begin at ``starts`` ``[W + 1]``: ``[N, H, E]`` three times -> ``[N, H, E]``."""
    bounds = starts.tolist()
    lengths = [end - start for start, end in pairwise(bounds)]
    if len(set(lengths)) == 1:
        return _attend_in_equal_windows(query, key, value, lengths[0], scaling)
    results, order = [], []
    for length in sorted(set(lengths)):
        windows = torch.tensor([start for start, own in zip(bounds, lengths, strict=False) if own == length])
        patches = (windows[:, None] + torch.arange(length)).flatten().to(query.device)
        results.append(_attend_in_equal_windows(query[patches], key[patches], value[patches], length, scaling))
        order.append(patches)
    return torch.cat(results)[torch.cat(order).argsort()]


def _attend_in_equal_windows(query: Tensor, key: Tensor, value: Tensor, length: int, scaling: float) -> Tensor:
    query, key, value = (part.unflatten(0, (-1, length)).transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2).flatten(0, 1)


def _narrow_last_mlp(network: Any) -> None:
    """Run the last layer's MLP for the last token of each prompt only; layers of other structure stay as they are."""
    layer = network.model.language_model.layers[-1]
    if type(layer).__name__ in SUPPORTED_LAYERS:
        hooks = _LastTokenHooks()
        # On parts of the layer, so that recomputation in backward runs them too.
        layer.self_attn.register_forward_pre_hook(hooks.before_attention, with_kwargs=True)
        layer.mlp.register_forward_pre_hook(hooks.before_mlp)


class _LastTokenHooks:
    """Hooks of a layer's attention and MLP."""

    def __init__(self) -> None:
        self._reads_prompts = False

    def before_attention(self, _attention: nn.Module, _inputs: Any, settings: dict[str, Any]) -> None:
        """Note whether this call is of prompts."""
        self._reads_prompts = isinstance(settings.get("sharing"), PromptAttention)

    def before_mlp(self, _mlp: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        """Pass on the last token; the layer adds its output to all tokens, of which the others are never read."""
        return (inputs[0][:, -1:],) if self._reads_prompts else None
