"""Linear layers prepared for a rollout: few operators for each token, on weights that do not change meanwhile.

A layer with adapters takes peft a dozen operators, most of them casts; a decoder calls seven such layers a block for
each token. Here the adapters of layers that share an input are stacked (``A``) and laid out block-diagonally (``B``),
scaled and cast once, so that a call is two or three products. They are not added to the weights: the first updates of
an adapter are smaller than what bfloat16 can hold beside a weight. Only copies in float32 have them (`merge_linear`).

Private operators of torch, tried with 2.11 and 2.15: ``torch.ops.mkl``, which torch's own compiler uses for frozen
weights.

Shape letters: R rows, I inputs, O outputs of all layers together, K ranks of all adapters together.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from vr1.policy.products import Float32Head, autocast_dtype, multiply_into_float32

__all__ = ["Linear", "compute_dtype", "merge_linear", "prepare_head", "prepare_linear", "prepare_linears"]

# Inputs [R, I] and optionally a residual [R, O], to which the outputs are added, in place where that is possible ->
# outputs [R, O].
Linear = Callable[..., Tensor]
# With more rows than this, reordered weights are no faster.
_MAX_REORDERED_ROWS = 32


def prepare_linear(layers: Sequence[nn.Module], rows: int, dequantize: bool = False) -> Linear:
    """Several linear layers of one input as one function of ``[R, I]`` (and a residual ``[R, O]``) -> ``[R, O]``.

    Weights of several layers are copied into one matrix, in the precision that is computed with; the weights of a
    single layer are used where they are, unless they are trained: then a copy takes the memory of their gradients,
    which do not exist during a rollout. On a CPU, MKL multiplies few rows twice as fast by such a copy in an order of
    its own. 4-bit weights stay packed, one product a layer, or are dequantized here, once for all calls.

    Args:
        layers: linear layers of torch or bitsandbytes, with or without LoRA adapters. Others are called as they are.
        rows: R of all calls to come.
        dequantize: multiply with dequantized copies of 4-bit weights.

    Example:
        >>> layers = [nn.Linear(4, 3), nn.Linear(4, 2)]
        >>> inputs = torch.randn(5, 4)
        >>> with torch.no_grad():
        ...     both = prepare_linear(layers, rows=5)(inputs)
        >>> torch.allclose(both, torch.cat([layer(inputs) for layer in layers], dim=1), atol=1e-6)
        True
    """
    split = [_split(layer) for layer in layers]
    known = [part for part in split if part is not None]
    if len(known) < len(split):
        return _as_they_are(layers)
    if not any(part.adapters for part in known):
        return _base([part.base for part in known], rows, dequantize)
    return _with_adapters(known, rows, dequantize)


def prepare_linears(
    layers: Sequence[nn.Module], rows: int, dequantize: bool = False
) -> Callable[[Tensor], list[Tensor]]:
    """Several linear layers of one input, with an output of each: ``[R, I]`` -> ``[R, O]`` of each layer.

    Weights are used where they are; the adapters share a product. For layers whose weights are too large to copy.

    Args:
        layers: as for `prepare_linear`.
        rows: likewise.
        dequantize: likewise.
    """
    parts = [part for layer in layers if (part := _split(layer)) is not None and part.adapters]
    if len(parts) < len(layers):
        functions = [prepare_linear([layer], rows, dequantize) for layer in layers]
        return lambda inputs: [function(inputs) for function in functions]
    bases = [_base([part.base], rows, dequantize) for part in parts]
    dtype, down, ups = _dtype_of(parts), _down(parts), [_up([part]) for part in parts]
    ranks = [len(up) for up in ups]

    def products(inputs: Tensor) -> list[Tensor]:
        low = torch.mm(inputs.to(dtype), down).split(ranks, dim=1)
        return [_add_update(base(inputs), own, up) for base, own, up in zip(bases, low, ups, strict=True)]

    return products


def prepare_head(head: nn.Module, rows: int) -> Callable[[Tensor], Tensor]:
    """The last layer as one function of hidden states ``[R, D]`` -> float32 logits ``[R, V]``.

    Args:
        head: as for `prepare_linear`.
        rows: R of all calls to come.
    """
    if type(head) is not Float32Head or not _is_linear(head) or (dtype := compute_dtype(head)).itemsize > 2:
        plain = prepare_linear([head], rows)
        return lambda states: plain(states).float()
    transposed, bias = head.weight.detach().to(dtype).t(), _bias([head], torch.float32)

    def logits(states: Tensor) -> Tensor:
        result = multiply_into_float32(states.to(dtype), transposed)
        return result if bias is None else result + bias

    return logits


def merge_linear(layers: Sequence[nn.Module], dequantize: bool = False) -> tuple[Tensor, Tensor | None] | None:
    """Several linear layers of one input as one float32 weight ``[O, I]`` and bias ``[O]``, adapters added.

    In float32, unlike 16 bits, the first updates of an adapter are not lost beside a weight.

    Args:
        layers: as for `prepare_linear`.
        dequantize: likewise; without it, there is no such weight for 4-bit ones.

    Returns:
        Weight, and bias if there is any; None if the layers compute anything else, or in another precision.

    Example:
        >>> weight, bias = merge_linear([nn.Linear(4, 3), nn.Linear(4, 2)])
        >>> weight.shape, bias.shape
        (torch.Size([5, 4]), torch.Size([5]))
    """
    weights, bases = [], []
    for layer in layers:
        part = _split(layer)
        if part is None or (_is_four_bit(part.base) and not dequantize) or compute_dtype(part.base) != torch.float32:
            return None
        weight = _dense(part.base)
        if type(weight) not in (Tensor, nn.Parameter):
            return None  # A shard.
        weight = weight.float()
        for down, up, scale in part.adapters:
            weight = torch.addmm(weight, up.detach().float(), down.detach().float(), alpha=scale)
        weights.append(weight)
        bases.append(part.base)
    return weights[0] if len(weights) == 1 else torch.cat(weights), _bias(bases, torch.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Split:
    """A layer without its adapters, and each adapter's ``A`` ``[rank, I]``, ``B`` ``[O, rank]`` and scale."""

    base: Any
    adapters: list[tuple[Tensor, Tensor, float]]


def _split(layer: nn.Module) -> _Split | None:
    """The parts of a layer; None for a layer whose forward does anything else."""
    if not isinstance(layer, LoraLayer):
        return _Split(base=layer, adapters=[]) if _is_linear(layer) else None
    base = layer.get_base_layer()
    if not _is_linear(base):
        return None
    if layer.disable_adapters or layer.merged:
        return _Split(base=base, adapters=[])
    adapters: list[tuple[Tensor, Tensor, float]] = []
    for name in layer.active_adapters:
        if name not in layer.lora_A:
            continue
        down, up = layer.lora_A[name], layer.lora_B[name]
        drops = layer.training and isinstance(layer.lora_dropout[name], nn.Dropout)
        if name in layer.lora_variant or up.bias is not None or drops:
            return None
        adapters.append((down.weight, up.weight, float(layer.scaling[name])))
    return _Split(base=base, adapters=adapters)


def _is_linear(layer: nn.Module) -> bool:
    plain = type(layer) in (nn.Linear, Float32Head) or _is_four_bit(layer)
    return plain and not layer._forward_hooks and not layer._forward_pre_hooks


def _is_four_bit(layer: nn.Module) -> bool:
    """Whether bitsandbytes holds the weights in 4 bits; where it was never imported, no layer is its."""
    bitsandbytes: Any = sys.modules.get("bitsandbytes")
    return bitsandbytes is not None and isinstance(layer, bitsandbytes.nn.Linear4bit)


def _as_they_are(layers: Sequence[nn.Module]) -> Linear:
    """Calls the layers, under autocast if it is on now: decoders switch it off."""
    kind = next(layers[0].parameters()).device.type
    mixed = autocast_dtype(kind)

    def called(inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        with torch.autocast(kind, mixed, cache_enabled=False) if mixed else nullcontext():
            outputs = [layer(inputs) for layer in layers]
        result = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        return result if residual is None else residual + result

    return called


def _base(layers: Sequence[nn.Linear], rows: int, dequantize: bool) -> Linear:
    """The layers without adapters."""
    packed = any(_is_four_bit(layer) for layer in layers)
    if packed and not dequantize:
        return _as_they_are(layers) if len(layers) > 1 or not _is_four_bit(layers[0]) else _four_bit(layers[0])
    dtype = compute_dtype(layers[0])
    trained = layers[0].weight.requires_grad
    if len(layers) == 1 and not packed and not trained and layers[0].weight.dtype != dtype:
        return _as_they_are(layers)
    weights = [_dense(layer) for layer in layers]
    weight = (weights[0] if len(weights) == 1 else torch.cat(weights)).to(dtype)
    bias = _bias(layers, dtype)
    if rows <= _MAX_REORDERED_ROWS and trained and _can_reorder(layers, weight):
        return _reordered(weight, bias, rows)
    transposed = weight.t()

    def product(inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        inputs = inputs.to(dtype)
        if residual is not None and bias is None and residual.dtype == dtype:
            return residual.addmm_(inputs, transposed)
        result = torch.mm(inputs, transposed) if bias is None else torch.addmm(bias, inputs, transposed)
        return result if residual is None else residual + result

    return product


def _dense(layer: Any) -> Tensor:
    """The weight of a layer ``[O, I]``, dequantized if it is stored in 4 bits."""
    if not _is_four_bit(layer):
        return layer.weight.detach()  # type: ignore[no-any-return]
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, quant_state=layer.weight.quant_state)  # type: ignore[no-any-return]


def _four_bit(layer: Any) -> Linear:
    from bitsandbytes import matmul_4bit

    weight, state, bias, dtype = layer.weight, layer.weight.quant_state, layer.bias, layer.compute_dtype
    dtype = dtype or torch.float32
    bias = None if bias is None else bias.detach().to(dtype)

    def product(inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        result = matmul_4bit(inputs.to(dtype), weight, quant_state=state, bias=bias)
        return result if residual is None else residual + result

    return product


def _with_adapters(parts: Sequence[_Split], rows: int, dequantize: bool) -> Linear:
    """``base(x) + (x A^T) B^T``, with the adapters of all layers in one ``A`` ``[K, I]`` and one ``B`` ``[O, K]``.

    Where the weights of several layers are copied into one matrix anyway, ``A`` is part of it.
    """
    layers = [part.base for part in parts]
    dtype, down, up = compute_dtype(layers[0]), _down(parts), _up(parts)
    if len(layers) > 1 and (dequantize or not any(_is_four_bit(layer) for layer in layers)):
        return _joined(layers, down, up)
    base = _base(layers, rows, dequantize)

    def product(inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        return _add_update(base(inputs, residual), torch.mm(inputs.to(dtype), down), up)

    return product


def _joined(layers: Sequence[nn.Linear], down: Tensor, up: Tensor) -> Linear:
    """Weights of several layers and ``A`` in one matrix, then the update."""
    dtype, width = down.dtype, up.shape[1]
    weight = torch.cat([*(_dense(layer).to(dtype) for layer in layers), down.t()]).t()
    bias = _bias(layers, dtype)
    if bias is not None:
        bias = torch.cat([bias, bias.new_zeros(down.shape[1])])

    def product(inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        inputs = inputs.to(dtype)
        outputs = torch.mm(inputs, weight) if bias is None else torch.addmm(bias, inputs, weight)
        result = outputs[:, :width].addmm_(outputs[:, width:], up)
        return result if residual is None else residual + result

    return product


def _down(parts: Sequence[_Split]) -> Tensor:
    """All ``A``, transposed: ``[I, K]``."""
    return torch.cat([down.detach() for part in parts for down, _, _ in part.adapters]).to(_dtype_of(parts)).t()


def _up(parts: Sequence[_Split]) -> Tensor:
    """All ``B``, scaled and transposed, block-diagonally: ``[K, O]``."""
    blocks = []
    for part in parts:
        own = [up.detach().t() * scale for _, up, scale in part.adapters]
        blocks.append(torch.cat(own) if own else part.base.weight.new_zeros(0, part.base.out_features))
    return torch.block_diag(*blocks).to(_dtype_of(parts))


def _dtype_of(parts: Sequence[_Split]) -> torch.dtype:
    return compute_dtype(parts[0].base)


def _add_update(result: Tensor, low: Tensor, up: Tensor) -> Tensor:
    """``result + low B^T``, in place where the precision is the same."""
    return result.addmm_(low, up) if result.dtype == low.dtype else result + torch.mm(low, up)


def compute_dtype(layer: nn.Linear) -> torch.dtype:
    """The precision of a layer's product: that of autocast where it is on, else that of the weights.

    Args:
        layer: of torch or bitsandbytes, without adapters.
    """
    if mixed := autocast_dtype(layer.weight.device.type):
        return mixed
    if _is_four_bit(layer):
        compute: torch.dtype | None = layer.compute_dtype  # type: ignore[assignment]
        return compute or torch.float32
    return layer.weight.dtype


def _bias(layers: Sequence[nn.Linear], dtype: torch.dtype) -> Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    parts = [
        layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach() for layer in layers
    ]
    return torch.cat(parts).to(dtype)


def _can_reorder(layers: Sequence[nn.Linear], weight: Tensor) -> bool:
    plain = all(type(layer.weight) is nn.Parameter for layer in layers)
    return plain and weight.device.type == "cpu" and weight.dtype == torch.float32 and _has_mkl()


def _has_mkl() -> bool:
    """Whether torch is built with MKL and its operators for reordered weights."""
    return torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


def _reordered(weight: Tensor, bias: Tensor | None, rows: int) -> Linear:
    reordered = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)

    def product(inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        result: Tensor = torch.ops.mkl._mkl_linear(inputs, reordered, weight, bias, rows)
        return result if residual is None else result.add_(residual)

    return product
