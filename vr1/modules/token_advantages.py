"""Advantages of completions and of their boxes -> one for each token.

Shape letters: B prompts, G group size, C completion tokens.
"""

from collections.abc import Collection
from typing import Any

from torch import Tensor

from vr1.advantage import AdvantageEstimator, Advantages, RewardedGroups
from vr1.detections import token_ends
from vr1.errors import UserError
from vr1.families import Family
from vr1.rollout.generate import hidden_tokens
from vr1.types import Rollout


def token_advantages(
    advantages: Advantages,
    groups: RewardedGroups,
    rollout: Rollout,
    tokenizer: Any,
    markers: Collection[int],
) -> Tensor:
    """The advantages of the tokens of B * G completions.

    Args:
        advantages: of the completions.
        groups: the completions' rewards and matches.
        rollout: the completions.
        tokenizer: of transformers.
        markers: special tokens that are part of an answer.

    Returns:
        ``[B, G]``, or ``[B, G, C]`` where boxes have advantages of their own; on the CPU.
    """
    if advantages.boxes is None:
        return advantages.answers
    hidden = hidden_tokens(tokenizer, markers)
    tokens, lengths = rollout.tokens.flatten(0, 1).cpu(), rollout.mask.sum(-1).flatten().tolist()
    ends = [token_ends(tokenizer, row[:n].tolist(), hidden) for row, n in zip(tokens, lengths, strict=True)]
    return advantages.of_tokens([match.detections for match in groups.matches], ends, rollout.tokens.shape[-1])


def check_spans(advantages: Advantages, groups: RewardedGroups, family: Family, estimator: AdvantageEstimator) -> None:
    """Check that a family says where the boxes of its answers are, if their tokens have advantages of their own.

    Args:
        advantages: of the completions.
        groups: the completions' matches.
        family: which read them.
        estimator: which computed the advantages.

    Raises:
        UserError: it does not.
    """
    if advantages.boxes is None:
        return
    detections = [match.detections for match in groups.matches]
    if any(len(found.item_spans) != len(found) or len(found.box_spans) != len(found) for found in detections):
        raise UserError(
            f"{type(estimator).__name__}: {type(family).__name__}.read does not say where its boxes are in an answer;"
            " let it return Answer.item_spans and box_spans, or set model.advantage to vr1.advantage.GroupAdvantage"
        )
