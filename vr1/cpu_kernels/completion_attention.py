"""The functions of ``completion_attention.c``: for float32 tensors on a CPU, where `can_attend` allows them.

Shape letters: B prompts, P prompt tokens, S completions, T their tokens in a row, H query heads, K key and value heads,
E head width.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from vr1.cpu_kernels.library import load_functions_or_none

__all__ = ["Completions", "Inputs", "attend", "attend_backward", "can_attend"]

_POINTER, _SIZE, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
# Widths of heads are read in vectors of at most so many numbers.
_VECTOR = 16


class _CPart(ctypes.Structure):
    _fields_ = [("data", _POINTER), *((name, _SIZE) for name in ("batch", "head", "token"))]


class _CShape(ctypes.Structure):
    _fields_ = [
        *((name, _SIZE) for name in ("B", "P", "S", "T", "H", "K", "E")),
        *((name, _POINTER) for name in ("first_token", "prompt", "first_of_row")),
        ("longest", _SIZE),
        ("scaling", _NUMBER),
    ]


class _CInputs(ctypes.Structure):
    _fields_ = [(name, _CPart) for name in ("query", "prompt_keys", "prompt_values", "keys", "values")]


_ARGUMENTS = {
    "scratch_size": [_POINTER] + [_SIZE] * 2,
    "forward": [_POINTER] * 5 + [_SIZE],
    "backward": [_POINTER] * 7 + [_SIZE],
}


@cache
def _functions() -> ctypes.CDLL | None:
    return load_functions_or_none("completion_attention.c", _ARGUMENTS, sizes=["scratch_size"])


class Inputs(NamedTuple):
    """What the attention of a layer reads, or the gradients of that.

    Attributes:
        query: ``[1, H, T, E]``.
        prompt_keys: ``[B, K, P, E]``.
        prompt_values: ``[B, K, P, E]``.
        keys: ``[1, K, T, E]``.
        values: ``[1, K, T, E]``.
    """

    query: Tensor
    prompt_keys: Tensor
    prompt_values: Tensor
    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class Completions:
    """Which tokens of a row belong to which completion.

    Args:
        first_token: ``[B]`` int64, the first token of each prompt that is no padding.
        prompt: ``[S]`` int64, the prompt that each completion continues.
        first_of_row: ``[S + 1]`` int64, where each completion begins in the row; the last is T.
        longest: tokens of the longest completion.
    """

    first_token: Tensor
    prompt: Tensor
    first_of_row: Tensor
    longest: int

    @classmethod
    def of(cls, prompt_mask: Tensor, mask: Tensor) -> "Completions":
        """Those of two masks.

        Args:
            prompt_mask: ``[B, P]`` bool, true on tokens; prompts are padded on the left.
            mask: ``[B, G, C]`` bool, true on the first tokens of each completion; in this order they are the row.

        Example:
            >>> mask = torch.tensor([[[True, True], [True, False]]])
            >>> Completions.of(torch.ones(1, 3, dtype=torch.bool), mask).first_of_row
            tensor([0, 2, 3])
        """
        batch, group, _ = mask.shape
        lengths = mask.sum(-1).flatten()
        return cls(
            first_token=(~prompt_mask).sum(1),
            prompt=torch.arange(batch).repeat_interleave(group),
            first_of_row=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
            longest=int(lengths.max()),
        )


def can_attend(inputs: Inputs) -> bool:
    """Whether these functions can compute with tensors: they are float32 on a CPU, of heads in whole vectors.

    Subclasses of tensors have no memory that C could read, as for `vr1.cpu_kernels.training.is_fused`.
    """
    plain = all(type(part) is Tensor and part.is_cpu and part.dtype == torch.float32 for part in inputs)
    return plain and inputs.query.shape[-1] % _VECTOR == 0 and _functions() is not None


def attend(inputs: Inputs, completions: Completions, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention of each token to its prompt, and to its completion up to itself.

    Args:
        inputs: of a layer.
        completions: which tokens belong together.
        scaling: factor of the scores.

    Returns:
        ``[1, T, H, E]`` contiguous, and the logarithms ``[T, H]`` of the sums of the exponentials of scores.

    Example:
        >>> row, prompt = torch.zeros(1, 2, 3, 16), torch.ones(1, 2, 5, 16)
        >>> one = Completions.of(torch.ones(1, 5, dtype=torch.bool), torch.ones(1, 1, 3, dtype=torch.bool))
        >>> attend(Inputs(row, prompt, prompt, row, row), one, 0.25)[0][0, :, 0, 0]
        tensor([0.8333, 0.7143, 0.6250])
    """
    inputs = Inputs(*map(_readable, inputs))
    shape = _shape(inputs, completions, scaling)
    output = inputs.query.new_empty(1, shape.T, shape.H, shape.E)
    totals = output.new_empty(shape.T, shape.H)
    _call("forward", shape, _parts(inputs), _part(output.transpose(1, 2)), totals)
    return output, totals


def attend_backward(
    gradient: Tensor, inputs: Inputs, totals: Tensor, completions: Completions, scaling: float
) -> Inputs:
    """Gradients of the inputs of `attend`.

    Args:
        gradient: ``[1, T, H, E]``, of its output.
        inputs: its inputs.
        totals: its second result.
        completions: as there.
        scaling: as there.
    """
    inputs = Inputs(*map(_readable, inputs))
    shape = _shape(inputs, completions, scaling)
    query, keys, values = (_heads_side_by_side(part) for part in (inputs.query, inputs.keys, inputs.values))
    of_prompts = [gradient.new_empty(part.shape) for part in (inputs.prompt_keys, inputs.prompt_values)]
    gradients = Inputs(query, of_prompts[0], of_prompts[1], keys, values)
    of_completions = gradient.new_empty(shape.S, shape.K, 2, shape.P, shape.E)
    of_output = _readable(gradient)
    _call(
        "backward", shape, _parts(inputs), totals, _part(of_output.transpose(1, 2)), _parts(gradients), of_completions
    )
    return gradients


def _readable(tensor: Tensor) -> Tensor:
    """A tensor whose numbers of a token lie side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _heads_side_by_side(like: Tensor) -> Tensor:
    """Memory for ``[1, H, T, E]`` in the order that the layers around the attention read and write: [1, T, H, E]."""
    return like.new_empty(like.transpose(1, 2).shape).transpose(1, 2)


def _shape(inputs: Inputs, completions: Completions, scaling: float) -> _CShape:
    """The structure of the same name; refuses what C would read from a wrong place."""
    (batch, kv_heads, width, size), (_, heads, tokens, _) = inputs.prompt_keys.shape, inputs.query.shape
    numbers = (completions.first_token, completions.prompt, completions.first_of_row)
    assert all(part.dtype == torch.int64 and part.is_contiguous() for part in numbers)
    assert inputs.prompt_values.shape == inputs.prompt_keys.shape
    assert inputs.keys.shape == inputs.values.shape == (1, kv_heads, tokens, size)
    assert len(completions.first_token) == batch
    assert len(completions.first_of_row) == len(completions.prompt) + 1
    assert completions.first_of_row[-1] == tokens
    assert heads % kv_heads == 0
    return _CShape(
        batch, width, len(completions.prompt), tokens, heads, kv_heads, size,
        *(part.data_ptr() for part in numbers), completions.longest, scaling,
    )  # fmt: skip


def _part(tensor: Tensor) -> _CPart:
    return _CPart(tensor.data_ptr(), *tensor.stride()[:3])


def _parts(inputs: Inputs) -> _CInputs:
    return _CInputs(*map(_part, inputs))


def _call(name: str, shape: _CShape, *arguments: Tensor | ctypes.Structure) -> None:
    """Call a function with torch's number of threads, and what it needs beside its arguments."""
    library, threads = _functions(), torch.get_num_threads()
    assert library is not None
    scratch = torch.empty(library.scratch_size(ctypes.byref(shape), name == "backward", threads), dtype=torch.float32)
    given = (part.data_ptr() if isinstance(part, Tensor) else ctypes.byref(part) for part in arguments)
    getattr(library, name)(ctypes.byref(shape), *given, scratch.data_ptr(), threads)
