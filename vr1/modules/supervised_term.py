"""A supervised term beside the loss of the rewards: one forward for a group's completions and the true answer.

Shape letters: B prompts, G group size, C completion tokens, A tokens of the longest true answer.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from vr1.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SupervisedTerm:
    """A supervised term beside the loss of the rewards.

    Rewards judge what the model finds by itself; an object that none of its completions finds teaches it nothing. This
    term adds the negative log-probability of the true boxes, written as the model's family writes them, at the
    temperature of sampling: ``loss + weight * mean over the tokens of the true answers``. They are one more completion
    of their group in the forward and backward of an update, so that image and prompt are computed once for all, and
    like those they end at ``sampling.max_new_tokens``.

    Args:
        weight: of the term. AdamW does not see the scale of a loss, only the ratio of its terms: much above 1, the
            training is supervised fine-tuning, whose gains and losses it has.
        target_order: order of the boxes in a true answer: ``sorted`` by their left edge, or ``annotated``.

    Raises:
        UserError: a weight that is not above 0.

    Source: a supervised term beside GRPO with a weight, CHORD, arXiv 2508.11408.

    Example:
        >>> SupervisedTerm(weight=0.3).target_order
        'sorted'
    """

    weight: float
    target_order: Literal["annotated", "sorted"] = "sorted"

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"supervised: weight={self.weight} must be above 0; leave supervised out to train without")


def append_answers(
    tokens: Tensor, mask: Tensor, answers: Tensor, answers_mask: Tensor, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Completions with the true answer as the last of each group.

    Args:
        tokens: ``[B, G, C]`` int64.
        mask: ``[B, G, C]`` bool.
        answers: ``[B, 1, A]`` int64.
        answers_mask: ``[B, 1, A]`` bool.
        limit: tokens of an answer, at most; longer ones are cut, which bounds the memory of an update.

    Returns:
        Tokens and mask ``[B, G + 1, max(C, min(A, limit))]``, padded on the right, and the share of answers that are
        cut, a scalar.

    Example:
        >>> tokens, mask = torch.tensor([[[5, 6]]]), torch.tensor([[[True, True]]])
        >>> answers, answers_mask = torch.tensor([[[7, 8, 9, 10]]]), torch.ones(1, 1, 4, dtype=torch.bool)
        >>> joined, _, cut = append_answers(tokens, mask, answers, answers_mask, limit=3)
        >>> joined.tolist(), float(cut)
        ([[[5, 6, 0], [7, 8, 9]]], 1.0)
    """
    cut = answers_mask[..., limit:].any(-1).float().mean()
    answers, answers_mask = answers[..., :limit], answers_mask[..., :limit]
    width = max(tokens.shape[-1], answers.shape[-1])
    joined = [
        torch.cat([pad(part, (0, width - part.shape[-1])) for part in parts], dim=1)
        for parts in ((tokens, answers), (mask, answers_mask))
    ]
    return joined[0], joined[1], cut
