"""Advantages of completions and of their boxes -> one for each token.

Shape letters: B prompts, G group size, C completion tokens.
"""

from torch import Tensor

from vr1.advantage import AdvantageEstimator, Advantages, RewardedGroups
from vr1.errors import UserError
from vr1.families import Family


def token_advantages(
    advantages: Advantages, groups: RewardedGroups, length: int, family: Family, estimator: AdvantageEstimator
) -> Tensor:
    """The advantages of the tokens of B * G completions.

    Args:
        advantages: of the completions.
        groups: the completions' matches, whose detections have ``token_ends``.
        length: C.
        family: which read the completions.
        estimator: which computed the advantages.

    Returns:
        ``[B, G]``, or ``[B, G, C]`` where boxes have advantages of their own; on the CPU.

    Raises:
        UserError: boxes have advantages of their own, and the family does not say where they are in its answers.
    """
    if advantages.boxes is None:
        return advantages.answers
    detections = [match.detections for match in groups.matches]
    if any(len(found.item_spans) != len(found) or len(found.box_spans) != len(found) for found in detections):
        raise UserError(
            f"{type(estimator).__name__}: {type(family).__name__}.read does not say where its boxes are in an answer;"
            " let it return Answer.item_spans and box_spans, or set model.advantage to vr1.advantage.GroupAdvantage"
        )
    return advantages.of_tokens(detections, length)
