"""How completions are sampled: the settings, and one token for each row of logits.

Shape letters: R rows, V vocabulary.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vr1.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of a rollout.

    Args:
        group_size: completions per prompt (G).
        temperature: logits are divided by it; 0 is greedy decoding.
        top_p: sample from the smallest set of tokens whose probabilities sum to at least this; 1 samples from all.
        max_new_tokens: longest completion in tokens.

    Raises:
        UserError: a setting outside its range.
    """

    group_size: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise UserError(f"sampling: group_size={self.group_size} must be at least 1")
        if self.temperature < 0:
            raise UserError(f"sampling: temperature={self.temperature} must not be negative; 0 is greedy decoding")
        if not 0 < self.top_p <= 1:
            raise UserError(f"sampling: top_p={self.top_p} must be above 0 and at most 1; 1 samples from all tokens")
        if self.max_new_tokens < 1:
            raise UserError(f"sampling: max_new_tokens={self.max_new_tokens} must be at least 1")


class Decoded(NamedTuple):
    """The completions of B prompts, G of each, as a decoder returns them (R = B * G rows, C tokens).

    Attributes:
        tokens: ``[R, C]`` int64.
        lengths: ``[R]`` int64 tokens of each row, the end token included.
        finished: ``[R]`` bool, whether a row reached its end token.
        log_probs: ``[R, C]`` float32 of the sampled tokens, as `sample_token` returns them.
    """

    tokens: Tensor
    lengths: Tensor
    finished: Tensor
    log_probs: Tensor


def sampling_bytes(rows: int, vocabulary: int, sampling: Sampling) -> float:
    """Bytes of the logits of a step of decoding and of what `sample_token` makes of them, at most at a time.

    Values of float32 for each row and token: the logits and their probabilities, both in blocks of one more copy; with
    a temperature the divided logits; with top-p the sorted probabilities, their order in int64, a mask of one byte and
    what that leaves. A GPU's sort may take more.

    Args:
        rows: R.
        vocabulary: V.
        sampling: temperature and top-p.

    Example:
        >>> sampling_bytes(2, 1000, Sampling()), sampling_bytes(2, 1000, Sampling(top_p=0.9))
        (24000.0, 58000.0)
    """
    # Greedy decoding: the logits and their exponentials.
    copies = 2.0
    if sampling.temperature != 0:
        copies = 3.0 + (sampling.temperature != 1) + (4.25 if sampling.top_p < 1 else 0.0)
    return 4 * copies * rows * vocabulary


def sample_token(logits: Tensor, sampling: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Sample one token per row by inverting the cumulative distribution.

    The token is the first whose cumulative probability is above the uniform number.

    Args:
        logits: ``[R, V]`` float32.
        sampling: temperature and top-p.
        uniform: ``[R]`` uniform random numbers in [0, 1).

    Returns:
        Tokens ``[R]`` int64 and their log-probabilities ``[R]`` float32 at this temperature (at 1 for greedy decoding),
        over the full vocabulary: top-p does not change them.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, 0.0, 5.0]])
        >>> tokens, log_probs = sample_token(logits, Sampling(), torch.tensor([0.7, 0.0]))
        >>> tokens.tolist(), log_probs.exp()
        ([1, 0], tensor([0.5000, 0.0066]))
        >>> sample_token(logits, Sampling(temperature=0), torch.tensor([0.7, 0.0]))[0].tolist()
        [0, 2]
    """
    if sampling.temperature == 0:
        largest, token = logits.max(-1)
        return token, largest - logits.logsumexp(-1)
    scaled = logits if sampling.temperature == 1 else logits / sampling.temperature
    probabilities = torch.softmax(scaled, dim=-1)
    token = _choose(probabilities, sampling.top_p, uniform)
    return token, probabilities.gather(-1, token[:, None])[:, 0].log()


def _choose(probabilities: Tensor, top_p: float, uniform: Tensor) -> Tensor:
    """Tokens ``[R]`` of rows of probabilities ``[R, V]``, sampled from the smallest set that sums to ``top_p``."""
    if top_p == 1:
        return _invert(probabilities, uniform.double())
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    # The last token that is kept: with it the sum reaches top_p. A little less, so that a sum that equals it is enough.
    last = _invert(ordered, torch.full_like(uniform, top_p - 1e-9, dtype=torch.float64))
    cut = torch.arange(probabilities.shape[-1], device=probabilities.device) > last[:, None]
    return order.gather(-1, _invert(ordered.masked_fill(cut, 0.0), uniform.double())[:, None])[:, 0]


# Entries of a block; the square of it is about the largest vocabulary.
_BLOCK = 256


def _invert(weights: Tensor, share: Tensor) -> Tensor:
    """The first entry of each row whose cumulative sum is above a share of the row's total.

    It has a positive weight, whatever the rounding: first the block is found in which the sum is reached, then the
    entry within, each by a cumulative sum over a few hundred values only, as a product with a triangle of ones. torch's
    own cumulative sum is not deterministic on a GPU, and over a whole vocabulary it would have to be one of float64.

    Args:
        weights: ``[R, V]`` float32, not negative, with a positive sum.
        share: ``[R]`` float64 in [0, 1).

    Returns:
        ``[R]`` int64.
    """
    rows, size = weights.shape
    blocks = pad(weights, (0, -size % _BLOCK)).view(rows, -1, _BLOCK)
    share = share[:, None].clamp(max=1 - 1e-12)
    sums = blocks.sum(-1).double() @ _triangle(blocks.shape[1], weights.device)
    target = share * sums[:, -1:]
    block = (sums <= target).sum(-1, keepdim=True)
    before = pad(sums, (1, 0)).gather(-1, block)
    within = blocks.gather(1, block[..., None].expand(-1, 1, _BLOCK))[:, 0].double()
    sums_within = within @ _triangle(_BLOCK, weights.device)
    # The same share of the block, in terms of the block's own total, which is rounded differently.
    height = pad(sums, (1, 0)).gather(-1, block + 1) - before
    target = ((target - before) / height).clamp(0, 1 - 1e-12) * sums_within[:, -1:]
    return (block * _BLOCK)[:, 0] + (sums_within <= target).sum(-1)


@cache
def _triangle(size: int, device: torch.device) -> Tensor:
    """``[size, size]`` float64: a row vector times it is the vector's cumulative sum."""
    with torch.inference_mode(False):
        return torch.ones(size, size, dtype=torch.float64, device=device).triu()
