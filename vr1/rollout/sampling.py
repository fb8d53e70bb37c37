"""How completions are sampled: the settings, and one token for each row of logits.

Shape letters: R rows, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

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


def sample_token(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """Sample one token per row by inverting the cumulative distribution.

    The token is the first whose cumulative probability is above the uniform number.

    Args:
        logits: ``[R, V]`` float32.
        sampling: temperature and top-p.
        uniform: ``[R]`` uniform random numbers in [0, 1).

    Returns:
        ``[R]`` int64 tokens.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, 0.0, 5.0]])
        >>> sample_token(logits, Sampling(), torch.tensor([0.7, 0.0])).tolist()
        [1, 0]
        >>> sample_token(logits, Sampling(temperature=0), torch.tensor([0.7, 0.0])).tolist()
        [0, 2]
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    scaled = logits if sampling.temperature == 1 else logits / sampling.temperature
    probabilities = torch.softmax(scaled, dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        # The most likely token always stays: a token is cut if those before it already reach top_p.
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= sampling.top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ordered)
    cumulative = probabilities.double().cumsum(-1)
    # A threshold below the total falls on a token of positive probability, even though the sum is rounded.
    threshold = uniform.double().clamp(max=1 - 1e-12) * cumulative[:, -1]
    return torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
