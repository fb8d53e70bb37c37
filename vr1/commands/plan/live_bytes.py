"""Counts the bytes that a computation allocates, on tensors with shapes and no content (device "meta").

The model's own code runs, with autograd and recomputation, so that tensors are saved for backward and freed as in the
real run. Only what fused kernels save is restated here, since the choice of kernel depends on the device.

Private parts of torch that this file relies on, tried with 2.15: ``torch.utils._python_dispatch`` and
``torch.utils._pytree``, which have no public counterparts.
"""

import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class LiveBytes:
    """A context that counts every new tensor without content for as long as it lives.

    Small integer tensors with content (sizes of images, indices) may take part; they are not counted.

    Args:
        autocast: compute products and attention in this precision, as autocast does on devices that it knows: it
            converts inputs and weights, and what backward needs of the results is saved. None computes in the precision
            of the tensors.

    Attributes:
        now: bytes allocated.
        peak: the most bytes allocated at a time since `reset`.

    Example:
        >>> x = torch.zeros(10, device="meta")
        >>> with LiveBytes() as live:
        ...     y = (x + 1) * 2
        >>> live.now, live.peak
        (40, 80)
    """

    def __init__(self, autocast: torch.dtype | None = None) -> None:
        self.now = self.peak = 0
        self._autocast, self._modes = autocast, ExitStack()

    def __enter__(self) -> "LiveBytes":
        # No torch function mode: these are off within backward, where activations are recomputed.
        self._replace(F, "scaled_dot_product_attention", _fused(F.scaled_dot_product_attention))
        if self._autocast is not None:
            for place, name in _CAST:
                self._replace(place, name, _casting(getattr(place, name), self._autocast))
        self._modes.enter_context(_Counter(self))
        return self

    def _replace(self, place: Any, name: str, function: Any) -> None:
        self._modes.callback(setattr, place, name, getattr(place, name))
        setattr(place, name, function)

    def __exit__(self, *error: Any) -> None:
        self._modes.close()

    def reset(self) -> None:
        """Forget the peak."""
        self.peak = self.now

    def add(self, size: int) -> None:
        """Count bytes as allocated; negative ones as freed."""
        self.now += size
        self.peak = max(self.peak, self.now)


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors among an operator's arguments or results; torch's own `tree_leaves` takes several times as long."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(tuple(values.values()))


def _description(value: Any) -> Any:
    """All that the shape of a result can depend on, in an operator's arguments without content; hashable."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (tuple, list)):
        return tuple(map(_description, value))
    if isinstance(value, dict):
        return tuple((name, _description(item)) for name, item in value.items())
    # As keys, 1, 1.0 and True are the same.
    return type(value), value


class _Counter(TorchDispatchMode):
    def __init__(self, live: LiveBytes) -> None:
        super().__init__()
        self._live = live
        self._known: set[int] = set()
        # Shape, strides and dtype of results, by operator and arguments. The layers of a model repeat them, and torch
        # takes long to infer them.
        self._results: dict[Any, tuple[torch.Size, tuple[int, ...], torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = (args, kwargs or {})
        tensors = list(_tensors(arguments))
        without_content = [tensor for tensor in tensors if tensor.is_meta]
        for tensor in without_content:
            # Weights and other tensors from before are not counted.
            if id(tensor.untyped_storage()) not in self._known:
                self._follow(tensor, counted=False)
        if without_content and len(without_content) == len(tensors):
            result = self._run(func, arguments, tensors)
        else:
            if without_content:
                arguments = tree_map_only(Tensor, lambda leaf: leaf if leaf.is_meta else leaf.to("meta"), arguments)
            result = func(*arguments[0], **arguments[1])
        for tensor in _tensors(result):
            if tensor.is_meta and id(tensor.untyped_storage()) not in self._known:
                self._follow(tensor, counted=True)
        return result

    def _run(self, func: Any, arguments: tuple[Any, dict[str, Any]], tensors: list[Tensor]) -> Any:
        """The result of an operator on tensors without content; where that is a new tensor, it is inferred once."""
        key = (func, _description(arguments))
        if (known := self._results.get(key)) is not None:
            shape, strides, dtype = known
            return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
        result = func(*arguments[0], **arguments[1])
        if isinstance(result, Tensor) and result.is_meta:
            storages = {id(tensor.untyped_storage()) for tensor in tensors}
            # Not those that share the memory of an argument: views, and what is changed in place.
            if id(result.untyped_storage()) not in storages:
                self._results[key] = (result.shape, result.stride(), result.dtype)
        return result

    def _follow(self, tensor: Tensor, counted: bool) -> None:
        storage = tensor.untyped_storage()
        size = storage.nbytes() if counted else 0
        self._known.add(id(storage))
        self._live.add(size)
        weakref.finalize(storage, self._forget, id(storage), size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live.add(-size)


# What models multiply with, among the functions that autocast computes in lower precision.
_CAST: tuple[tuple[Any, str], ...] = (
    (F, "linear"),
    (F, "scaled_dot_product_attention"),
    (torch, "matmul"),
    (torch, "bmm"),
    (torch, "addmm"),
    (Tensor, "__matmul__"),
    (Tensor, "matmul"),
)


def _casting(function: Any, dtype: torch.dtype) -> Any:
    """The function with its floating-point tensors without content converted first."""

    def cast(value: Any) -> Any:
        converts = isinstance(value, Tensor) and value.is_meta and value.is_floating_point()
        return value.to(dtype) if converts else value

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})

    return call


def _fused(attention: Any) -> Any:
    """Attention that saves what fused kernels save, for tensors without content; ``attention`` for all others."""

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **settings: Any) -> Any:
        if not query.is_meta:
            return attention(query, key, value, attn_mask=attn_mask, **settings)
        return _Attention.apply(query, key, value, attn_mask)

    return attend


class _Attention(torch.autograd.Function):
    """Saves what flash and memory-efficient attention save: inputs, output and one number a query, but no scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        saved = [query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32)]
        if mask is not None:
            # torch converts a boolean mask to one of 0 and -inf in every call.
            saved.append(query.new_empty(mask.shape) if mask.dtype == torch.bool else mask)
        ctx.save_for_backward(*saved)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


class FourBitLinear(nn.Linear):
    """A frozen linear layer whose weight is dequantized for every product, as bitsandbytes does."""

    def forward(self, input: Tensor) -> Tensor:
        """The product ``[..., out]``."""
        result: Tensor = _DequantizedProduct.apply(input.to(self.weight.dtype), self.weight)
        return (result if self.bias is None else result + self.bias).to(input.dtype)


class _DequantizedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return input @ torch.empty_like(weight).t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] @ torch.empty_like(ctx.weight), None
