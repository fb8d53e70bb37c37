"""LoRA adapters in training: as of peft, with fewer operators and copies.

Under autocast peft converts the input of each adapter to float32, and the product that follows converts it back: for
the feed-forward part of a 7B these are the largest tensors of a layer. It then scales and adds the update in passes of
its own. Here the input is used as it is, and the scaled update is added by its product.

Of peft this relies on, tried with 0.21: the classes ``Linear`` and ``Linear4bit`` of ``peft.tuners.lora`` and their
attributes ``lora_A``, ``lora_B``, ``lora_dropout``, ``lora_variant``, ``scaling``.
"""

import sys
from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn.functional import linear

from vr1.policy.forwards import replace_forward
from vr1.policy.products import autocast_dtype

__all__ = ["fuse_adapters"]


def fuse_adapters(network: nn.Module) -> None:
    """Change the forward of all adapters of a model in place; adapters of other kinds than plain LoRA stay.

    Args:
        network: with or without adapters.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> network = get_peft_model(nn.Sequential(nn.Linear(4, 3)), LoraConfig(target_modules=["0"], r=2))
        >>> states = torch.randn(5, 4)
        >>> before = network(states)
        >>> fuse_adapters(network)
        >>> torch.allclose(network(states), before, atol=1e-6)
        True
    """
    kinds = [lora.Linear]
    # The class for 4-bit weights exists where bitsandbytes is installed; where it was never imported, no layer is its.
    if "bitsandbytes" in sys.modules and hasattr(lora, "Linear4bit"):
        kinds.append(lora.Linear4bit)
    for layer in network.modules():
        if type(layer) in kinds:
            replace_forward(layer, _forward)


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    name = None if args or kwargs else _plain_adapter(self, x)
    result: Tensor = self.replaced.forward(self, x, *args, **kwargs) if name is None else _with_adapter(self, x, name)
    return result


def _plain_adapter(layer: Any, x: Tensor) -> str | None:
    """The adapter that a layer adds to its base layer; None where it does anything else."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or len(names) != 1 or names[0] in layer.lora_variant:
        return None
    [name] = names
    weight = layer.get_base_layer().weight
    # Without autocast, conversions are needed where precisions differ.
    same = x.dtype == layer.lora_A[name].weight.dtype and weight.dtype in (x.dtype, torch.uint8)
    # Tensors without content stand for those of a GPU when memory is planned, which emulates autocast.
    converted = same or x.is_meta or autocast_dtype(x.device.type)
    return name if layer.lora_B[name].bias is None and converted else None


def _with_adapter(layer: Any, x: Tensor, name: str) -> Tensor:
    base = layer.base_layer(x)
    low = linear(layer.lora_dropout[name](x), layer.lora_A[name].weight)
    scaled = layer.lora_B[name].weight * layer.scaling[name]
    if base.dtype != low.dtype:
        # Such as of 4-bit weights whose inputs are float32: the sum keeps their precision.
        return base + linear(low, scaled).to(base.dtype)
    result: Tensor = torch.addmm(base.reshape(-1, len(scaled)), low.reshape(-1, low.shape[-1]), scaled.t())
    return result.view(base.shape)
