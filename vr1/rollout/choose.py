"""Logits -> one token per row.

Shape letters: R rows, V vocabulary.
"""

import torch
from torch import Tensor

from vr1.rollout.settings import Sampling


def choose(logits: Tensor, sampling: Sampling, chance: Tensor) -> Tensor:
    """One token per row by inversion of the distribution function.

    Args:
        logits: ``[R, V]`` float32.
        sampling: temperature and top-p.
        chance: ``[R]`` uniform numbers in [0, 1).

    Returns:
        ``[R]`` int64 tokens.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, 0.0, 5.0]])
        >>> choose(logits, Sampling(), torch.tensor([0.7, 0.0])).tolist()
        [1, 0]
        >>> choose(logits, Sampling(temperature=0), torch.tensor([0.7, 0.0])).tolist()
        [0, 2]
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    scaled = logits if sampling.temperature == 1 else logits / sampling.temperature
    probabilities = torch.softmax(scaled, dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        # The most likely token always stays: what is cut lies behind the tokens that already reach top_p.
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= sampling.top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ordered)
    cumulative = probabilities.double().cumsum(-1)
    # A chance below the total lands on a token of positive probability, rounding of the sum included.
    threshold = chance.double().clamp(max=1 - 1e-12) * cumulative[:, -1]
    return torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
