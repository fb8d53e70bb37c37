"""Linear layers of few rows, which is all that decoding asks for, and which waits for the weights to be read."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

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
