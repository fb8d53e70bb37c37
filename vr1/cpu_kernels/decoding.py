"""The functions of ``decoding.c``, for float32 tensors on a CPU.

Shape letters: B prompts, P prompt tokens, W slots of a prompt, R rows, D hidden size, H query heads, K key and value
heads, E head width, F width of the feed-forward part, T capacity for own tokens, V vocabulary, I inputs, O outputs.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vr1.cpu_kernels.library import load_functions

__all__ = [
    "BLOCK",
    "LayerWeights",
    "Network",
    "Norm",
    "Product",
    "Rows",
    "Sampled",
    "StoredTokens",
    "in_blocks",
    "sample",
]

_POINTER, _SIZE, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
_ARGUMENTS: dict[str, list[Any]] = {
    "pack": [_POINTER] * 2 + [_SIZE] * 3,
    "scratch_size": [_POINTER] * 2 + [_SIZE] * 2,
    "step": [_POINTER] * 5 + [_SIZE] * 2,
    "sample": [_POINTER] * 2 + [_SIZE] + [_POINTER] * 2 + [_SIZE],
}
# As in attention.h: keys are read in blocks of so many.
BLOCK = 16
# As in products.h: weights are packed in blocks of so many outputs.
_OUTPUTS = 16
# As in decoding.c: of the vocabulary, as many tokens are summed at a time.
_SAMPLED = 256
# A task of the attention has about so many queries, whose scores stay in a core's own cache.
_QUERIES = 32


class _CNorm(ctypes.Structure):
    _fields_ = [("weight", _POINTER), ("epsilon", _NUMBER)]


class _CProduct(ctypes.Structure):
    _fields_ = [("weight", _POINTER), ("bias", _POINTER), ("outputs", _SIZE), ("inputs", _SIZE)]


class _CLayer(ctypes.Structure):
    _fields_ = [
        *((name, _CNorm) for name in ("attention_norm", "query_norm", "key_norm", "mlp_norm")),
        *((name, _CProduct) for name in ("qkv", "output", "gate", "up", "down")),
        ("scaling", _NUMBER),
        *((name, _POINTER) for name in ("prompt_keys", "prompt_values", "own_keys", "own_values")),
    ]


class _CNetwork(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(_CLayer)),
        *((name, _SIZE) for name in ("count", "D", "H", "K", "E")),
        ("norm", _CNorm),
        ("head", _CProduct),
    ]


class _CRows(ctypes.Structure):
    _fields_ = [
        *((name, _SIZE) for name in ("R", "B", "P", "W", "T", "slot")),
        *((name, _POINTER) for name in ("first_token", "row_of_slot", "cosine", "sine")),
    ]


class _CSampled(ctypes.Structure):
    _fields_ = [
        *((name, _SIZE) for name in ("R", "C", "forbidden_count", "end_count")),
        *((name, _POINTER) for name in ("forbidden", "ends", "uniform", "count", "tokens", "lengths", "log_probs")),
        *((name, _POINTER) for name in ("latest", "position", "running")),
        ("temperature", _NUMBER),
    ]


@cache
def _functions() -> ctypes.CDLL:
    return load_functions("decoding.c", _ARGUMENTS, sizes=["scratch_size"])


def in_blocks(keys: Tensor) -> Tensor:
    """Keys as `StoredTokens` has them: ``[N, E, P]`` -> ``[N, P / 16 rounded up, E, 16]``, padded with zeros.

    Example:
        >>> in_blocks(torch.ones(6, 64, 40)).shape
        torch.Size([6, 3, 64, 16])
    """
    return pad(keys, (0, -keys.shape[2] % BLOCK)).unflatten(2, (-1, BLOCK)).transpose(1, 2).contiguous()


@dataclass(frozen=True, slots=True)
class Norm:
    """``x * rsqrt(mean(x^2) + epsilon) * weight``, with a weight ``[D]``."""

    weight: Tensor
    epsilon: float


class Product:
    """A linear layer ``x W^T + b``, whose weight is copied in the order that a step reads it in.

    Args:
        weight: ``[O, I]``.
        bias: ``[O]``, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.outputs, self.inputs = weight.shape
        outputs = -(-self.outputs // _OUTPUTS) * _OUTPUTS
        weight = weight.contiguous()
        self.weight = weight.new_empty(outputs * self.inputs)
        _functions().pack(weight.data_ptr(), self.weight.data_ptr(), self.outputs, self.inputs, torch.get_num_threads())
        self.bias = None if bias is None else pad(bias, (0, outputs - self.outputs))


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerWeights:
    """A decoder layer; biases of products and norms of queries and keys where the model has them.

    Args:
        attention_norm: before the attention.
        query_norm: of each head of the queries, of width E.
        key_norm: likewise of the keys.
        qkv: ``[(H + 2 * K) * E, D]``: queries, keys and values.
        output: ``[D, H * E]``.
        mlp_norm: before the feed-forward part, ``down(silu(gate(x)) * up(x))``.
        gate: ``[F, D]``.
        up: ``[F, D]``.
        down: ``[D, F]``.
        scaling: factor of the attention's scores.
    """

    attention_norm: Norm
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    qkv: Product
    output: Product
    mlp_norm: Norm
    gate: Product
    up: Product
    down: Product
    scaling: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTokens:
    """Keys and values of a layer, float32 and contiguous.

    Args:
        prompt_keys: ``[B * K, P / 16 rounded up, E, 16]`` (`in_blocks`), anything behind P.
        prompt_values: ``[B * K, P, E]``.
        own_keys: ``[B * K * W, T / 16, E, 16]``; a step stores the new token there.
        own_values: ``[B * K * W, T, E]``, likewise.
    """

    prompt_keys: Tensor
    prompt_values: Tensor
    own_keys: Tensor
    own_values: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Which prompt each row continues, and where the new token is.

    Args:
        first_token: ``[B]`` int64, the first token of each prompt that is no padding.
        row_of_slot: ``[B * W]`` int64, the row that is stored in each slot; -1 for none.
        slot: where the new token is stored, in [0, T); it is the last that is read.
        cosine: ``[R, E]`` of the new token's rotary position.
        sine: ``[R, E]``, its first half negated.
    """

    first_token: Tensor
    row_of_slot: Tensor
    slot: int
    cosine: Tensor
    sine: Tensor


class Network:
    """A language model that computes the logits of one more token in every row.

    Args:
        layers: of one shape.
        norm: after the last layer.
        head: ``[V, D]``.
        heads: H.
        kv_heads: K.
        width: E, a multiple of 16.
    """

    def __init__(
        self, layers: Sequence[LayerWeights], norm: Norm, head: Product, heads: int, kv_heads: int, width: int
    ) -> None:
        assert len({(layer.qkv.inputs, layer.qkv.outputs, layer.gate.outputs) for layer in layers}) == 1
        # The structures hold addresses alone.
        self._kept = layers, norm, head
        self._layers = (_CLayer * len(layers))(*(_layer(layer) for layer in layers))
        self._network = _CNetwork(
            self._layers, len(layers), layers[0].qkv.inputs, heads, kv_heads, width, _norm(norm), _product(head)
        )
        self._scratch = torch.empty(0)

    def step(self, states: Tensor, stored: Sequence[StoredTokens], rows: Rows) -> Tensor:
        """Logits of the next tokens, ``[R, V]``.

        Args:
            states: ``[R, D]`` contiguous, embeddings of the new tokens.
            stored: of each layer; changed in place.
            rows: which prompt each row continues.
        """
        first = stored[0]
        network = self._network
        prompts = len(rows.first_token)
        slots = len(rows.row_of_slot) // prompts
        _check(states, rows, stored)
        assert len(first.prompt_values) == prompts * network.K
        assert len(first.own_values) == prompts * slots * network.K
        for layer, tokens in zip(self._layers, stored, strict=True):
            layer.prompt_keys, layer.prompt_values = tokens.prompt_keys.data_ptr(), tokens.prompt_values.data_ptr()
            layer.own_keys, layer.own_values = tokens.own_keys.data_ptr(), tokens.own_values.data_ptr()
        given = _CRows(
            len(states), prompts, first.prompt_values.shape[1], slots, first.own_values.shape[1], rows.slot,
            rows.first_token.data_ptr(), rows.row_of_slot.data_ptr(), rows.cosine.data_ptr(), rows.sine.data_ptr(),
        )  # fmt: skip
        threads = torch.get_num_threads()
        # As many tasks as there are threads, if they are not too small for it.
        of_key = network.H // network.K
        at_a_time = min(max(1, _QUERIES // of_key), -(-slots // -(-threads // (prompts * network.K))))
        arguments = ctypes.byref(network), ctypes.byref(given)
        needed = _functions().scratch_size(*arguments, at_a_time, threads)
        if self._scratch.numel() < needed:
            self._scratch = states.new_empty(needed)
        logits = states.new_empty(len(states), network.head.outputs)
        _functions().step(
            *arguments, states.data_ptr(), logits.data_ptr(), self._scratch.data_ptr(), at_a_time, threads
        )
        return logits


def _check(states: Tensor, rows: Rows, stored: Sequence[StoredTokens]) -> None:
    """What C would read from a wrong place."""
    tensors = [states, rows.cosine, rows.sine]
    for layer in stored:
        tensors += [layer.prompt_keys, layer.prompt_values, layer.own_keys, layer.own_values]
    assert all(part.dtype == torch.float32 and part.is_contiguous() for part in tensors)
    assert all(part.dtype == torch.int64 and part.is_contiguous() for part in (rows.first_token, rows.row_of_slot))
    assert rows.slot < stored[0].own_values.shape[1] == stored[0].own_keys.shape[1] * BLOCK


def _norm(norm: Norm | None) -> _CNorm:
    return _CNorm(None, 0.0) if norm is None else _CNorm(norm.weight.data_ptr(), norm.epsilon)


def _product(product: Product) -> _CProduct:
    bias: Any = None if product.bias is None else product.bias.data_ptr()
    return _CProduct(product.weight.data_ptr(), bias, product.outputs, product.inputs)


def _layer(layer: LayerWeights) -> _CLayer:
    norms = (layer.attention_norm, layer.query_norm, layer.key_norm, layer.mlp_norm)
    products = (layer.qkv, layer.output, layer.gate, layer.up, layer.down)
    return _CLayer(*map(_norm, norms), *map(_product, products), layer.scaling)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """What has been sampled of R rows, of C tokens at most; all contiguous.

    Args:
        forbidden: int64, tokens that are never sampled.
        ends: int64, tokens that end a row, at least one.
        uniform: ``[R, C]`` float64, uniform random numbers in [0, 1).
        count: ``[1]`` int64, tokens of each row so far.
        tokens: ``[R, C]`` int64.
        lengths: ``[R]`` int64.
        log_probs: ``[R, C]`` float32.
        latest: ``[R]`` int64, the latest token of each row.
        position: ``[R]`` int64, its rotary position.
        running: ``[R]`` bool, whether the row goes on after it.
        temperature: above 0.
    """

    forbidden: Tensor
    ends: Tensor
    uniform: Tensor
    count: Tensor
    tokens: Tensor
    lengths: Tensor
    log_probs: Tensor
    latest: Tensor
    position: Tensor
    running: Tensor
    temperature: float


def sample(sampled: Sampled, logits: Tensor) -> None:
    """Sample the next token of each row by inverting the cumulative distribution.

    Args:
        sampled: changed in place, all but the first three. A row that had ended before gets the first of ``ends``, with
            a log-prob of 0. A row in which a logit is NaN or infinite, or all are -inf, gets token 0 and NaN.
        logits: ``[R, V]`` float32 contiguous; changed in place.

    Example:
        >>> zeros = torch.zeros(1, dtype=torch.long)
        >>> rows = Sampled(
        ...     forbidden=torch.tensor([2]), ends=torch.tensor([1]), uniform=torch.tensor([[0.7]]).double(),
        ...     count=zeros.clone(), tokens=zeros.clone()[None], lengths=zeros.clone(), log_probs=torch.zeros(1, 1),
        ...     latest=zeros.clone(), position=zeros.clone(), running=torch.tensor([True]), temperature=1.0,
        ... )
        >>> sample(rows, torch.zeros(1, 3))
        >>> rows.tokens, rows.log_probs.exp(), rows.running
        (tensor([[1]]), tensor([[0.5000]]), tensor([False]))
    """
    (rows, size), (_, limit) = logits.shape, sampled.tokens.shape
    numbers = (sampled.forbidden, sampled.ends, sampled.count, sampled.tokens, sampled.lengths)
    assert all(part.dtype == torch.int64 for part in (*numbers, sampled.latest, sampled.position))
    assert sampled.running.dtype == torch.bool
    assert sampled.log_probs.dtype == logits.dtype == torch.float32
    assert sampled.uniform.dtype == torch.float64
    read = (*numbers, sampled.uniform, sampled.log_probs, logits, sampled.latest, sampled.position, sampled.running)
    assert all(part.is_contiguous() for part in read)
    assert sampled.uniform.shape == sampled.log_probs.shape == sampled.tokens.shape == (rows, limit)
    weights, sums = torch.empty_like(logits), logits.new_empty(rows, -(-size // _SAMPLED), dtype=torch.double)
    given = _CSampled(
        rows, limit, len(sampled.forbidden), len(sampled.ends), sampled.forbidden.data_ptr(), sampled.ends.data_ptr(),
        sampled.uniform.data_ptr(), sampled.count.data_ptr(), sampled.tokens.data_ptr(), sampled.lengths.data_ptr(),
        sampled.log_probs.data_ptr(), sampled.latest.data_ptr(), sampled.position.data_ptr(),
        sampled.running.data_ptr(), sampled.temperature,
    )  # fmt: skip
    _functions().sample(
        ctypes.byref(given), logits.data_ptr(), size, weights.data_ptr(), sums.data_ptr(), torch.get_num_threads()
    )
