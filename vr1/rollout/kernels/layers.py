"""Kernels of what a decoder layer computes element by element.

Shape letters: R rows, D width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["gated", "rms_norm"]

_BLOCK = 1024


@triton.jit
def _rms_norm(states, weight, output, epsilon, D, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    place = tl.arange(0, BLOCK)
    inside = place < D
    values = tl.load(states + row * D + place, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 0) / D + epsilon)
    factor = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + row * D + place, (values * scale * factor).to(output.dtype.element_ty), mask=inside)


@triton.jit
def _gated(gate, up, output, gate_stride, up_stride, D, BLOCK: tl.constexpr):
    row, block = tl.program_id(0), tl.program_id(1)
    place = block * BLOCK + tl.arange(0, BLOCK)
    inside = place < D
    first = tl.load(gate + row * gate_stride + place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(up + row * up_stride + place, mask=inside, other=0.0).to(tl.float32)
    result = first / (1 + tl.exp(-first)) * second
    tl.store(output + row * D + place, result.to(output.dtype.element_ty), mask=inside)


def rms_norm(states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """``x * rsqrt(mean(x^2) + epsilon) * weight``, computed in float32.

    Args:
        states: ``[R, D]`` contiguous.
        weight: ``[D]``.
        epsilon: added to the mean.
    """
    output = torch.empty_like(states)
    width = states.shape[-1]
    _rms_norm[(len(states),)](states, weight, output, epsilon, width, BLOCK=triton.next_power_of_2(width), num_warps=8)
    return output


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, computed in float32.

    Args:
        gate: ``[R, D]``, contiguous in the last dimension.
        up: likewise.
    """
    rows, width = gate.shape
    output = gate.new_empty(rows, width)
    grid = (rows, triton.cdiv(width, _BLOCK))
    _gated[grid](gate, up, output, gate.stride(0), up.stride(0), width, BLOCK=_BLOCK, num_warps=4)
    return output
