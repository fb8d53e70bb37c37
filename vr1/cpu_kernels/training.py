"""The functions of ``training.c``, for float32 tensors on a CPU, where `is_fused` says that they can be used.

Shape letters: R rows, D width, H heads, E head width, T tokens, V vocabulary.
"""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from vr1.cpu_kernels.library import load_functions_or_none

__all__ = [
    "entropy",
    "gated",
    "gated_backward",
    "is_fused",
    "logsumexp",
    "rms_norm",
    "rms_norm_backward",
    "rotate",
    "scaled_softmax",
]

_POINTER, _SIZE, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
_ARGUMENTS: dict[str, list[Any]] = {
    "gated": [_POINTER] * 3 + [_SIZE] * 2,
    "gated_backward": [_POINTER] * 5 + [_SIZE] * 2,
    "rms_norm": [_POINTER] * 4 + [_SIZE] * 2 + [_NUMBER, _SIZE],
    "rms_norm_backward": [_POINTER] * 6 + [_SIZE] * 4,
    "rotate": [_POINTER, _SIZE] + [_POINTER] * 3 + [_SIZE] * 5,
    "logsumexp": [_POINTER] * 2 + [_SIZE] * 3,
    "entropy": [_POINTER] * 3 + [_SIZE] * 3,
    "scaled_softmax": [_POINTER] * 4 + [_SIZE] * 3,
}
# Gradients of a norm's weight are summed over so many rows at a time, whatever the number of threads.
_ROWS = 32


@cache
def _functions() -> ctypes.CDLL | None:
    return load_functions_or_none("training.c", _ARGUMENTS)


def is_fused(*tensors: Tensor) -> bool:
    """Whether these functions can compute with tensors: they are float32 on a CPU, and the source compiles here.

    Subclasses of tensors have no memory that C could read: they are shards, or stand for tensors when memory is
    planned.

    Example:
        >>> is_fused(torch.ones(2, dtype=torch.float64)), is_fused(torch.ones(2, device="meta"))
        (False, False)
    """
    plain = all(
        type(tensor) in (Tensor, nn.Parameter) and tensor.is_cpu and tensor.dtype == torch.float32 for tensor in tensors
    )
    return plain and _functions() is not None


def _call(name: str, *arguments: Tensor | float | None) -> None:
    """Call a function with the addresses of tensors, and with torch's number of threads as the last argument."""
    pointers = (part.data_ptr() if isinstance(part, Tensor) else part for part in arguments)
    getattr(_functions(), name)(*pointers, torch.get_num_threads())


def gated(gate: Tensor, up: Tensor, in_place: bool = False) -> Tensor:
    """``silu(gate) * up``.

    Args:
        gate: any shape.
        up: of the same shape.
        in_place: store the result in ``gate``, if that is contiguous.

    Example:
        >>> gated(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
        tensor([0.0000, 1.4621])
    """
    gate, up = gate.contiguous(), up.contiguous()
    output = gate if in_place else torch.empty_like(gate)
    _call("gated", gate, up, output, gate.numel())
    return output


def gated_backward(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``gate`` and ``up``, given that of ``silu(gate) * up``; all of one shape."""
    gradient, gate, up = gradient.contiguous(), gate.contiguous(), up.contiguous()
    of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
    _call("gated_backward", gradient, gate, up, of_gate, of_up, gate.numel())
    return of_gate, of_up


def rms_norm(states: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """``x * weight * scale`` with ``scale = rsqrt(mean(x^2) + epsilon)``.

    Args:
        states: ``[..., D]``.
        weight: ``[D]``.
        epsilon: added to the mean.

    Returns:
        ``[..., D]``, and the scales ``[..., 1]``.

    Example:
        >>> rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
        (tensor([[0.8485, 2.2627]]), tensor([[0.2828]]))
    """
    states, weight = states.contiguous(), weight.contiguous()
    output, scale = torch.empty_like(states), states.new_empty(*states.shape[:-1], 1)
    _call("rms_norm", states, weight, output, scale, scale.numel(), len(weight), epsilon)
    return output, scale


def rms_norm_backward(
    gradient: Tensor, states: Tensor, weight: Tensor, scale: Tensor, for_states: bool, for_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of states and weight, given that of `rms_norm`'s output ``[..., D]``.

    Args:
        gradient: ``[..., D]``.
        states: ``[..., D]``.
        weight: ``[D]``.
        scale: ``[..., 1]`` as `rms_norm` returned it.
        for_states: whether the first result is needed; else it is None.
        for_weight: likewise for the second.
    """
    gradient, states, weight = gradient.contiguous(), states.contiguous(), weight.contiguous()
    rows, width = scale.numel(), len(weight)
    of_states = torch.empty_like(states) if for_states else None
    sums = states.new_empty(-(-rows // _ROWS), width) if for_weight else None
    _call("rms_norm_backward", gradient, states, weight, scale, of_states, sums, rows, width, _ROWS)
    return of_states, None if sums is None else sums.sum(0)


def rotate(states: Tensor, cosine: Tensor, sine: Tensor, backwards: bool = False) -> Tensor:
    """``x * cosine + (-second half, first half of x) * sine`` of each head.

    Args:
        states: ``[..., H, E]``, E even.
        cosine: ``[..., E]``, with the same first dimensions.
        sine: likewise.
        backwards: compute the gradient of ``x``, given that of the result.

    Returns:
        ``[..., H, E]`` contiguous.

    Example:
        >>> rotate(torch.tensor([[[3.0, 4.0]]]), torch.zeros(1, 2), torch.ones(1, 2))
        tensor([[[-4.,  3.]]])
    """
    rows = states.flatten(0, -3)
    _, heads, width = rows.shape
    if rows.stride()[1:] != (width, 1):
        rows = rows.contiguous()
    cosine, sine = cosine.contiguous(), sine.contiguous()
    output = states.new_empty(states.shape)
    _call("rotate", rows, rows.stride(0), cosine, sine, output, len(rows), heads, width, int(backwards))
    return output


def logsumexp(logits: Tensor) -> Tensor:
    """``log(sum(exp(z)))`` of logits ``[T, V]``: ``[T]``.

    Example:
        >>> logsumexp(torch.zeros(1, 8))
        tensor([2.0794])
    """
    logits = logits.contiguous()
    totals = logits.new_empty(len(logits))
    _call("logsumexp", logits, totals, *logits.shape)
    return totals


def entropy(logits: Tensor, totals: Tensor) -> Tensor:
    """Entropies ``-sum(p * log(p))`` of logits ``[T, V]``, ``log(p) = z - total``, given their `logsumexp`: ``[T]``."""
    logits = logits.contiguous()
    entropies = torch.empty_like(totals)
    _call("entropy", logits, totals, entropies, *logits.shape)
    return entropies


def scaled_softmax(logits: Tensor, totals: Tensor, factors: Tensor) -> Tensor:
    """``softmax(z) * factor`` of logits ``[T, V]``, given their `logsumexp` and factors ``[T]``."""
    logits, factors = logits.contiguous(), factors.contiguous()
    output = torch.empty_like(logits)
    _call("scaled_softmax", logits, totals, factors, output, *logits.shape)
    return output
