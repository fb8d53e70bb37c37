"""Logits -> log-probs and entropies of the tokens that were sampled.

Shape letters: T scored tokens, D hidden size, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Logits of this many tokens exist at a time: 1,024 rows of a 152K vocabulary are 0.6 GB in float32.
_CHUNK = 1024


def token_log_probs(
    head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies ``[T]`` of ``targets`` under ``head(hidden)``, chunk by chunk: no more logits exist.

    Args:
        head: maps hidden states ``[..., D]`` to float32 logits ``[..., V]``.
        hidden: ``[T, D]``.
        targets: ``[T]`` int64.
        temperature: the temperature that the tokens were sampled with.

    Returns:
        Log-probs ``[T]`` float32, and entropies ``[T]`` float32 without gradient.

    Example:
        >>> log_probs, entropy = token_log_probs(lambda logits: logits, torch.zeros(2, 4), torch.tensor([0, 3]), 1.0)
        >>> log_probs.exp().tolist()
        [0.25, 0.25]
    """

    def chunk(states: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(states)
        if temperature != 1:
            logits = logits / temperature
        total = logits.logsumexp(-1)
        log_probs = logits.gather(-1, target[:, None])[:, 0] - total
        # Last, since what is computed anew for backward ends with what backward needs.
        with torch.no_grad():
            entropy = total - torch.softmax(logits, dim=-1).mul_(logits).sum(-1)
        return log_probs, entropy

    parts = [
        checkpoint(chunk, states, target, use_reentrant=False, preserve_rng_state=False)
        for states, target in zip(hidden.split(_CHUNK), targets.split(_CHUNK), strict=True)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
