"""Products of 16-bit matrices whose results are not rounded to 16 bits: attention scores and logits.

A GPU sums such a product in float32; what costs precision is rounding the sums to 16 bits. With torch's ``out_dtype``
they stay float32, at the same speed and without float32 copies of the factors. Where torch cannot do so (on a CPU), the
factors are converted, a block of columns at a time.

Shape letters: N batch, M rows, K inner size, O outputs, D hidden size, V vocabulary.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

__all__ = ["Float32Head", "autocast_dtype", "multiplies_into_float32", "multiply_into_float32", "without_autocast"]

# Columns that are converted at a time: 64 MB in float32 at a hidden size of 2,048.
_CHUNK = 8192


def multiplies_into_float32(device: torch.device) -> bool:
    """Whether torch multiplies 16-bit matrices into a float32 result on a device.

    Tensors without content (``meta``) count as those of a GPU, which they stand for when memory is planned.
    """
    return device.type == "meta" or (device.type == "cuda" and torch.version.hip is None)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The precision that autocast gives to products on a kind of device now; None where it is off."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """A context in which products have the precision of their factors; autocast would round these to 16 bits."""
    on = autocast_dtype(device_type) is not None
    return torch.autocast(device_type, enabled=False) if on else nullcontext()


def multiply_into_float32(first: Tensor, second: Tensor) -> Tensor:
    """A matrix product in float32 of factors of any precision, with gradients in the precision of the factors.

    Args:
        first: ``[M, K]`` or ``[N, M, K]``.
        second: ``[K, O]`` or ``[N, K, O]``, of the same precision.

    Returns:
        ``[M, O]`` or ``[N, M, O]`` float32.

    Example:
        >>> ones = torch.ones(1, 257, dtype=torch.bfloat16)
        >>> float(ones @ ones.T), float(multiply_into_float32(ones, ones.T))
        (256.0, 257.0)
    """
    result: Tensor = _IntoFloat32.apply(first, second)
    return result


class _IntoFloat32(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(first, second)
        with without_autocast(first.device.type):
            if first.dtype == torch.float32:
                return first @ second
            if multiplies_into_float32(first.device):
                return (torch.mm if first.dim() == 2 else torch.bmm)(first, second, out_dtype=torch.float32)
            wide = first.float()
            return torch.cat([wide @ part.float() for part in second.split(_CHUNK, dim=-1)], dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        first, second = ctx.saved_tensors
        gradient = gradients[0].to(first.dtype)
        with without_autocast(first.device.type):
            return (
                gradient @ second.transpose(-1, -2) if ctx.needs_input_grad[0] else None,
                first.transpose(-1, -2) @ gradient if ctx.needs_input_grad[1] else None,
            )


class Float32Head(nn.Linear):
    """The last linear layer of a language model, whose logits are float32 whatever the precision of their factors."""

    def forward(self, input: Tensor) -> Tensor:
        """Hidden states ``[..., D]`` -> float32 logits ``[..., V]``."""
        dtype = autocast_dtype(input.device.type) or self.weight.dtype
        if dtype.itemsize > 2:
            return linear(input.to(dtype), self.weight, self.bias)
        logits = multiply_into_float32(input.flatten(0, -2).to(dtype), self.weight.to(dtype).t())
        if self.bias is not None:
            logits = logits + self.bias
        return logits.view(*input.shape[:-1], -1)
