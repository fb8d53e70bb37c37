"""The weights of a policy as an engine takes them: tensor by tensor, adapters alone, or a 4-bit base in 16 bits.

Tensors of a sharded model are gathered one at a time and freed after the engine has copied them. All processes must
therefore walk through them together; they do, since the order is that of the model.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from vr1.policy.patches import four_bit_layers
from vr1.policy.policy import Policy

__all__ = ["adapter_tensors", "all_weights", "write_adapter", "write_base"]


def all_weights(policy: Policy, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of all weights of a policy without adapters.

    Tied weights come under each of their names: an engine keeps one of its own for each.

    Args:
        policy: the policy.
        dtype: the engine's precision; shards are converted before they are gathered.
    """
    for name, value in policy.base.state_dict().items():
        yield name, _full(value, dtype)


def adapter_tensors(policy: Policy) -> dict[str, Tensor]:
    """The adapters of a policy on the CPU, under the names of peft's files; all processes call it together."""
    adapters = {
        name: _full(value, torch.float32).cpu().contiguous()
        for name, value in policy.network.state_dict().items()
        if "lora_" in name
    }
    state: dict[str, Tensor] = get_peft_model_state_dict(policy.network, state_dict=adapters)
    return state


def write_adapter(policy: Policy, adapters: dict[str, Tensor], folder: Path) -> None:
    """Write the adapters of a policy as peft writes them.

    Args:
        policy: a policy with adapters.
        adapters: of `adapter_tensors`.
        folder: an existing folder.
    """
    save_file(adapters, folder / "adapter_model.safetensors")
    (config,) = policy.network.peft_config.values()
    config.save_pretrained(folder)


def write_base(policy: Policy, processor: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write the base of a policy with 4-bit weights as a model with the same numbers in ``dtype``.

    The trainer multiplies by these numbers too: a 4-bit weight is dequantized for every product.

    Args:
        policy: a policy with 4-bit weights and adapters.
        processor: of the model.
        folder: an existing folder.
        dtype: the engine's precision.
    """
    from bitsandbytes.functional import dequantize_4bit

    packed = four_bit_layers(policy.base)
    weights = {}
    for name, parameter in policy.base.named_parameters():
        layer = packed.get(name.removesuffix(".weight"))
        if "lora_" in name:
            continue
        value = parameter.data
        if layer is not None:
            value = dequantize_4bit(parameter.data, layer.weight.quant_state)
        weights[name.replace(".base_layer.", ".")] = value.detach().to("cpu", dtype).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = policy.base.config.to_dict()
    settings.pop("quantization_config", None)
    config = type(policy.base.config).from_dict({**settings, "dtype": str(dtype).removeprefix("torch.")})
    config.architectures = [type(policy.base).__name__]
    config.save_pretrained(folder)
    processor.save_pretrained(folder)


def _full(value: Tensor, dtype: torch.dtype) -> Tensor:
    if not isinstance(value, DTensor):
        return value.detach()
    shard: Any = value.detach().to(dtype) if value.is_floating_point() else value.detach()
    gathered: Tensor = shard.full_tensor()
    return gathered
