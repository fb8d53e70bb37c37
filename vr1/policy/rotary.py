"""Rotary positions on a CPU in one pass over memory each way; transformers' functions take six.

Private parts of transformers that this file relies on, tried with 5.23: the forward of an attention layer of a language
model looks up ``apply_rotary_pos_emb`` in its module.

Shape letters: B rows, L tokens, H heads, E head width.
"""

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vr1.cpu_kernels import training
from vr1.policy.forwards import replace_forward

__all__ = ["fuse_rotation", "fused_rotation"]

_NAME = "apply_rotary_pos_emb"
_Rotate = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def fuse_rotation(attention: nn.Module) -> None:
    """Change the forward of an attention layer in place, where it rotates its queries and keys by a function as below.

    Args:
        attention: of a language model whose heads are rotated as a whole, in halves.

    Example:
        >>> from transformers.models.llama.modeling_llama import LlamaAttention, LlamaConfig
        >>> attention = LlamaAttention(LlamaConfig(hidden_size=8, num_attention_heads=2), layer_idx=0)
        >>> attention.config._attn_implementation = "sdpa"
        >>> states, angles = torch.randn(1, 3, 8), torch.randn(1, 3, 4)
        >>> inputs = {"position_embeddings": (angles.cos(), angles.sin()), "attention_mask": None}
        >>> before, _ = attention(states, **inputs)
        >>> fuse_rotation(attention)
        >>> torch.allclose(attention(states, **inputs)[0], before, atol=1e-6)
        True
    """
    forward: Any = type(attention).forward
    if _NAME in forward.__code__.co_names:
        replace_forward(attention, _attention)


def _attention(self: Any, *args: Any, **settings: Any) -> Any:
    return _with_fused_rotation(self.replaced.forward)(self, *args, **settings)


@cache
def _with_fused_rotation(forward: Any) -> Callable[..., Any]:
    """The same code, which finds another function under the name of transformers' one: a copy of it would be longer."""
    names = forward.__globals__ | {_NAME: fused_rotation(forward.__globals__[_NAME], heads=1)}
    function = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    function.__kwdefaults__ = forward.__kwdefaults__
    return function


def fused_rotation(original: _Rotate, heads: int) -> _Rotate:
    """A function of queries, keys, cosine and sine: ``x * cosine + (-second half, first half of x) * sine``.

    Args:
        original: the same by torch's operators, which is called where there is no other way.
        heads: dimension of the heads: 1 for queries and keys ``[B, H, L, E]``, -2 for ``[L, H, E]``; cosine
            and sine are ``[B, L, E]`` or ``[L, E]``.
    """

    def rotate(query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        if not all(_can_rotate(part.movedim(heads, -2), cosine, sine) for part in (query, key)):
            return original(query, key, cosine, sine)
        query, key = (_Rotation.apply(part.movedim(heads, -2), cosine, sine) for part in (query, key))
        return query.movedim(-2, heads), key.movedim(-2, heads)

    return rotate


def _can_rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> bool:
    # Positions may be broadcast over rows.
    shape = (*states.shape[:-2], states.shape[-1])
    fits = cosine.shape == sine.shape == shape and shape[-1] % 2 == 0
    return fits and not (cosine.requires_grad or sine.requires_grad) and training.is_fused(states, cosine, sine)


class _Rotation(torch.autograd.Function):
    """``[..., H, E]``, rotated by cosine and sine ``[..., E]`` without gradient."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return training.rotate(states, cosine, sine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return training.rotate(gradients[0], cosine, sine, backwards=True), None, None
