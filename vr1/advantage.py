"""Rewards -> advantages: how much better a completion, or one of its boxes, is than the others of its group.

Shape letters: B prompts, G group size, C completion tokens, M true boxes, N predicted boxes.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vr1.detections import tokens_of
from vr1.errors import UserError
from vr1.rewards import Criterion
from vr1.types import Detections, Match


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RewardedGroups:
    """Rewards of B groups of G completions and what they were computed from, on the CPU.

    Attributes:
        total: ``[B, G]`` float32, the weighted sum of the terms.
        terms: ``[B, G]`` float32 by term, before weighting.
        weights: weight by term.
        matches: B * G matches, the G of the first prompt first.
        criterion: the thresholds that the rewards were computed with.
    """

    total: Tensor
    terms: dict[str, Tensor]
    weights: dict[str, float]
    matches: Sequence[Match]
    criterion: Criterion

    def groups(self) -> list[Sequence[Match]]:
        """The G matches of each of B prompts."""
        size = self.total.shape[1]
        return [self.matches[start : start + size] for start in range(0, len(self.matches), size)]

    def select(self, rows: Sequence[int]) -> "RewardedGroups":
        """Some of these groups, by their indices."""
        groups, index = self.groups(), torch.tensor(list(rows))
        return RewardedGroups(
            total=self.total[index],
            terms={name: values[index] for name, values in self.terms.items()},
            weights=self.weights,
            matches=[match for row in rows for match in groups[row]],
            criterion=self.criterion,
        )

    def replaced(self, other: "RewardedGroups", groups: Tensor) -> "RewardedGroups":
        """These groups, with those of ``other`` where the mask ``groups`` ``[B]`` is true."""
        rows = groups[:, None]
        pairs = zip(self.groups(), other.groups(), groups.tolist(), strict=True)
        return RewardedGroups(
            total=torch.where(rows, other.total, self.total),
            terms={name: torch.where(rows, other.terms[name], values) for name, values in self.terms.items()},
            weights=self.weights,
            matches=[match for old, new, is_new in pairs for match in (new if is_new else old)],
            criterion=self.criterion,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Advantages:
    """Advantages of B groups of G completions, on the CPU.

    Attributes:
        answers: ``[B, G]`` float32 of each completion, for all of its tokens.
        items: for each of B * G completions ``[N]`` float64 of its items, added for the tokens of each item but those
            of its box; None where items have no advantage of their own.
        boxes: the same, added for the tokens of each box: from the first of its four numbers to the last.
        ends: ``[B, G]`` float32, added for the tokens after the last item.
    """

    answers: Tensor
    items: Sequence[NDArray[np.float64]] | None = None
    boxes: Sequence[NDArray[np.float64]] | None = None
    ends: Tensor | None = None

    def __post_init__(self) -> None:
        assert (self.items is None) == (self.boxes is None) == (self.ends is None)

    def metrics(self) -> dict[str, float]:
        """Figures to log: ``boxes_with_advantage``, the share of boxes with an advantage of their own that is not 0."""
        if self.boxes is None:
            return {}
        values = np.concatenate(self.boxes)
        return {"boxes_with_advantage": float((values != 0).mean()) if len(values) else 0.0}

    def of_tokens(self, detections: Sequence[Detections], length: int) -> Tensor:
        """The advantage of each token.

        A token belongs to the item in which its text ends, and so does the text between the item before and it: the
        decision to write another item belongs to that item.

        Args:
            detections: of B * G completions, with their ``item_spans``, ``box_spans`` and ``token_ends``.
            length: C.

        Returns:
            ``[B, G, C]`` float32.
        """
        values = self.answers[..., None].repeat(1, 1, length)
        if self.items is None or self.boxes is None or self.ends is None:
            return values
        rows = values.view(-1, length)
        last_parts = self.ends.flatten().tolist()
        for row, found in enumerate(detections):
            ends = found.token_ends
            added = np.full(length, last_parts[row])
            added[len(ends) :] = 0.0
            first = 0
            parts = zip(found.item_spans, found.box_spans, self.items[row], self.boxes[row], strict=True)
            for item_span, box_span, item, box in parts:
                after = bisect_right(ends, item_span[1])
                added[first:after] = item
                added[tokens_of(box_span, ends)] = box
                first = after
            rows[row] += torch.from_numpy(added)
        return values


class AdvantageEstimator(ABC):
    """Computes advantages of groups of completions. A subclass implements `__call__`."""

    @abstractmethod
    def __call__(self, groups: RewardedGroups) -> Advantages:
        """Advantages of B groups of G completions."""


class GroupAdvantage(AdvantageEstimator):
    """Centre rewards on the mean of their group, and scale them.

    ``A = (r - mean_group) / (std + epsilon)``. In a zero-variance group, whose rewards are all equal, every advantage
    is 0: it does not contribute to the policy gradient.

    Args:
        scale: which standard deviation to divide by: that of the ``group`` (GRPO), that of the ``batch``, or ``none``
            (Dr. GRPO, which shows that dividing by the group's gives more weight to very easy and very hard prompts).
        normalise: ``total`` scales the weighted sum of the reward terms. ``terms`` scales each term by itself before
            they are weighted and summed, and divides the sum by its standard deviation over the batch (GDPO): a term
            whose values vary little then counts as much as the others.
        epsilon: added to the standard deviation.

    Raises:
        UserError: negative ``epsilon``, or an unknown ``scale`` or ``normalise``.

    Example:
        >>> GroupAdvantage().of(torch.tensor([[1.0, 3.0], [2.0, 2.0]]))
        tensor([[-0.7071,  0.7071],
                [ 0.0000,  0.0000]])
        >>> GroupAdvantage(scale="none").of(torch.tensor([[1.0, 3.0]]))
        tensor([[-1.,  1.]])

    Source: Vision-R1, arXiv 2503.18013, Eq. 1 (its released code adds 1e-4 to the standard deviation);
    Dr. GRPO, arXiv 2503.20783; GDPO, arXiv 2601.05242.
    """

    def __init__(
        self,
        scale: Literal["group", "batch", "none"] = "group",
        normalise: Literal["total", "terms"] = "total",
        epsilon: float = 1e-4,
    ) -> None:
        if epsilon < 0:
            raise UserError(f"advantage: epsilon={epsilon} must not be negative")
        if scale not in ("group", "batch", "none"):
            raise UserError(f"advantage: scale={scale!r} must be 'group', 'batch' or 'none'")
        if normalise not in ("total", "terms"):
            raise UserError(f"advantage: normalise={normalise!r} must be 'total' or 'terms'")
        self.scale, self.normalise, self.epsilon = scale, normalise, epsilon

    def __call__(self, groups: RewardedGroups) -> Advantages:
        """Advantages of the completions; items and boxes have none of their own."""
        if self.normalise == "total":
            return Advantages(answers=self.of(groups.total))
        total = torch.zeros_like(groups.total)
        for name, scores in groups.terms.items():
            total = total + groups.weights[name] * self.of(scores)
        return Advantages(answers=total / (total.std() + self.epsilon).clamp(min=torch.finfo(total.dtype).tiny))

    def of(self, rewards: Tensor) -> Tensor:
        """Advantages ``[B, G]`` of rewards ``[B, G]``."""
        centred = rewards - rewards.mean(dim=1, keepdim=True)
        # A rounding error of the mean, divided by a tiny deviation, must not become an advantage.
        centred = centred.masked_fill(zero_variance_groups(rewards)[:, None], 0.0)
        if self.scale == "none":
            return centred
        deviation = rewards.std(dim=1, keepdim=True) if self.scale == "group" else rewards.std()
        return centred / (deviation + self.epsilon).clamp(min=torch.finfo(rewards.dtype).tiny)


class BoxAdvantage(AdvantageEstimator):
    """Credit for each box: a box is compared with the boxes that the other answers gave to the same object.

    The reward is a sum over boxes, but GRPO gives every token of an answer the same advantage: a good box in a bad
    answer is made less likely, a bad box in a good answer more likely. Here the tokens of a box also get an advantage
    of its own. With ``v = f(overlap)`` of a matched box, the value of Eq. 8 at the present stage:

    - a box that is matched to object j gets ``v - mean_group(v_j)``, where ``v_j`` is 0 in an answer that misses j;
    - an unmatched box gets minus the mean value of all boxes of the group;
    - the end of the list gets minus the mean values of the objects that the answer misses, less the same of the group:
      an answer that stops too early is compared with those that went on.

    The tokens of the four numbers are judged by the overlap alone, the other tokens of the item (its label, and the
    decision to write it) by the overlap after the label rule: a wrong label does not make a good box less likely.

    All are divided by the root mean square of the group's boxes. A token's advantage is ``answer_weight`` times the
    answer's, of `GroupAdvantage`, plus ``box_weight`` times that of its box or item.

    Args:
        box_weight: weight of the box's own advantage.
        answer_weight: weight of the answer's advantage; with 0 the terms of the reward do not matter.
        end_weight: weight of the advantage of the end of the list.
        scale: as in `GroupAdvantage`.
        normalise: as in `GroupAdvantage`.
        epsilon: as in `GroupAdvantage`.

    Raises:
        UserError: a weight is negative, or all are 0, and as `GroupAdvantage`.

    Example:
        >>> from vr1.rewards import STAGES, Reward
        >>> from vr1.types import SCORE, Detections, Targets, as_boxes
        >>> truth = Targets(boxes_xyxy=as_boxes([[0, 0, 10, 10]]), labels=("cat",))
        >>> answers = [
        ...     Detections(boxes_xyxy=as_boxes([[0, 0, 10, height]]), labels=("cat",), scores=np.array([SCORE]),
        ...         well_formed=True, valid=True)
        ...     for height in (10, 6)
        ... ]
        >>> reward = Reward(criterion=STAGES["off"])
        >>> output = reward(answers, [truth, truth])
        >>> groups = RewardedGroups(
        ...     total=output.total[None], terms={name: values[None] for name, values in output.terms.items()},
        ...     weights=reward.weights, matches=output.matches, criterion=reward.criterion,
        ... )
        >>> advantages = BoxAdvantage(answer_weight=0.0)(groups)
        >>> [values.round(2).tolist() for values in advantages.boxes]  # overlaps of 1.0 and 0.6 with the same object
        [[1.0], [-1.0]]

    Source: ours.
    """

    def __init__(
        self,
        box_weight: float = 1.0,
        answer_weight: float = 0.5,
        end_weight: float = 1.0,
        scale: Literal["group", "batch", "none"] = "group",
        normalise: Literal["total", "terms"] = "total",
        epsilon: float = 1e-4,
    ) -> None:
        weights = {"box_weight": box_weight, "answer_weight": answer_weight, "end_weight": end_weight}
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise UserError(f"advantage: {name}={weight} must be a number of at least 0")
        if not any(weights.values()):
            raise UserError("advantage: all weights are 0, so that nothing is trained; set box_weight or answer_weight")
        self.box_weight, self.answer_weight, self.end_weight = box_weight, answer_weight, end_weight
        self.answer_advantage = GroupAdvantage(scale=scale, normalise=normalise, epsilon=epsilon)

    def __call__(self, groups: RewardedGroups) -> Advantages:
        """Advantages of the completions, of their items and boxes, and of the ends of their lists."""
        items: list[NDArray[np.float64]] = []
        boxes: list[NDArray[np.float64]] = []
        ends = []
        for matches in groups.groups():
            own, missed = _compare([match.overlap for match in matches], matches, groups.criterion)
            items += [self.box_weight * values for values in own]
            ends.append(self.end_weight * missed)
            own, _ = _compare([match.box_overlap for match in matches], matches, groups.criterion)
            boxes += [self.box_weight * values for values in own]
        return Advantages(
            answers=self.answer_weight * self.answer_advantage(groups).answers,
            items=items,
            boxes=boxes,
            ends=torch.from_numpy(np.stack(ends)).float(),
        )


def _compare(
    overlaps: Sequence[NDArray[np.float64]], matches: Sequence[Match], criterion: Criterion
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """Advantages ``[N]`` of the boxes of each of G answers to one prompt, and ``[G]`` of the ends of their lists."""
    values = np.zeros((len(matches), matches[0].num_targets))
    boxes = []
    for row, (match, own) in enumerate(zip(matches, overlaps, strict=True)):
        values[row, match.target] = [criterion.f(overlap) for overlap in own.tolist()]
        boxes.append(np.zeros(match.num_predicted))
        boxes[-1][match.predicted] = values[row, match.target]
    baseline, every_box = values.mean(axis=0), np.concatenate(boxes)
    mean = every_box.mean() if len(every_box) else 0.0
    advantages = []
    missed_values = np.zeros(len(matches))
    for row, (match, value) in enumerate(zip(matches, boxes, strict=True)):
        advantage = np.full(len(value), -mean)
        advantage[match.predicted] = value[match.predicted] - baseline[match.target]
        advantages.append(advantage)
        missed = np.ones(match.num_targets, bool)
        missed[match.target] = False
        missed_values[row] = baseline[missed].sum()
    scale = np.sqrt(np.square(np.concatenate(advantages)).mean()) if len(every_box) else 0.0
    if scale < 1e-9:
        return [np.zeros(len(value)) for value in boxes], np.zeros(len(matches))
    return [advantage / scale for advantage in advantages], (missed_values.mean() - missed_values) / scale


def zero_variance_groups(rewards: Tensor) -> Tensor:
    """Which groups have rewards that are all equal.

    Args:
        rewards: ``[B, G]``.

    Returns:
        ``[B]`` bool.

    Example:
        >>> zero_variance_groups(torch.tensor([[1.0, 3.0], [2.0, 2.0]])).tolist()
        [False, True]
    """
    return rewards.amax(dim=1) == rewards.amin(dim=1)
