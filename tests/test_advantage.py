"""Advantages of completions against Eq. 1 in numpy, and those of boxes against a restatement object by object."""

import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch

from vr1.advantage import Advantages, BoxAdvantage, GroupAdvantage, RewardedGroups, zero_variance_groups
from vr1.rewards import STAGES, Reward
from vr1.types import Detections, Targets, as_boxes

REWARDS = torch.tensor([[1.0, 2.0, 3.0, 0.5], [2.0, 2.0, 2.0, 2.0], [0.1, 0.1, 0.1, 3.0]])


def test_group_scale_is_equation_1():
    values = REWARDS.numpy().astype(np.float64)
    expected = (values - values.mean(1, keepdims=True)) / (values.std(1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(GroupAdvantage().of(REWARDS).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_no_scale_only_centres():
    values = REWARDS.numpy()
    np.testing.assert_allclose(
        GroupAdvantage(scale="none").of(REWARDS).numpy(), values - values.mean(1, keepdims=True), atol=1e-6
    )


def test_batch_scale_divides_all_groups_by_the_same_number():
    values = REWARDS.numpy()
    expected = (values - values.mean(1, keepdims=True)) / (values.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(GroupAdvantage(scale="batch").of(REWARDS).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_contribute_exactly_nothing(scale):
    # 0.1 has no exact mean in float32: a tiny deviation must not amplify the rounding error.
    rewards = torch.full((2, 7), 0.1)
    assert (GroupAdvantage(scale=scale, epsilon=0.0).of(rewards) == 0).all()
    assert zero_variance_groups(rewards).all()


def test_order_within_a_group_does_not_matter():
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(GroupAdvantage().of(REWARDS[:, order]), GroupAdvantage().of(REWARDS)[:, order])


@pytest.mark.parametrize(
    ("estimator", "settings", "named"),
    [
        (GroupAdvantage, {"epsilon": -1.0}, "epsilon=-1.0"),
        (GroupAdvantage, {"scale": "group_size"}, "scale='group_size'"),
        (GroupAdvantage, {"normalise": "each"}, "normalise='each'"),
        (BoxAdvantage, {"epsilon": -1.0}, "epsilon=-1.0"),
        (BoxAdvantage, {"box_weight": -1.0}, "box_weight=-1.0"),
        (BoxAdvantage, {"end_weight": float("nan")}, "end_weight=nan"),
        (BoxAdvantage, {"box_weight": 0.0, "answer_weight": 0.0, "end_weight": 0.0}, "all weights are 0"),
    ],
)
def test_settings_out_of_range_are_errors(estimator, settings, named):
    with pytest.raises(ValueError, match=named):
        estimator(**settings)


# Two objects far apart. An answer is a list of boxes; each is an object, how much of its height the box covers, and a
# label.
LEFT, RIGHT, NOWHERE = (0, 0, 10, 100), (50, 0, 60, 100), (80, 0, 90, 100)


def answer(*boxes, label="cat"):
    corners = as_boxes([[x1, y1, x2, y1 + (y2 - y1) * share] for (x1, y1, x2, y2), share in boxes])
    return Detections(
        boxes_xyxy=corners,
        labels=(label,) * len(corners),
        scores=np.full(len(corners), 0.99),
        well_formed=True,
        valid=True,
    )


def groups(*answers, targets=(LEFT, RIGHT), stage="off"):
    """One group of these answers to one question, rewarded by the paper's terms."""
    reward = Reward(criterion=STAGES[stage])
    truth = Targets(boxes_xyxy=as_boxes(list(targets)), labels=("cat",) * len(targets))
    output = reward(list(answers), [truth] * len(answers))
    return RewardedGroups(
        total=output.total[None],
        terms={name: values[None] for name, values in output.terms.items()},
        weights=reward.weights,
        matches=output.matches,
        criterion=reward.criterion,
    )


def in_python(boxes):
    """Advantages of boxes before scaling, from lists of (object or None, value) by answer."""
    size = len(boxes)
    objects = {target for own in boxes for target, _ in own if target is not None}
    baseline = {t: sum(value for own in boxes for target, value in own if target == t) / size for t in objects}
    everything = [value for own in boxes for _, value in own]
    mean = sum(everything) / len(everything)
    raw = [[value - baseline[target] if target is not None else -mean for target, value in own] for own in boxes]
    scale = (sum(value**2 for own in raw for value in own) / len(everything)) ** 0.5
    return [[value / scale for value in own] for own in raw], {t: value / scale for t, value in baseline.items()}


def test_a_box_is_compared_with_the_boxes_of_the_same_object():
    given = groups(
        answer((LEFT, 1.0), (RIGHT, 0.6)),
        answer((RIGHT, 0.9)),
        answer((LEFT, 0.5), (RIGHT, 0.8), (NOWHERE, 1.0)),
        answer(),
    )
    found = BoxAdvantage(box_weight=2.0, answer_weight=0.0)(given)
    expected, _ = in_python([[(0, 1.0), (1, 0.6)], [(1, 0.9)], [(0, 0.5), (1, 0.8), (None, 0.0)], []])
    for own, other in zip(found.boxes, expected, strict=True):
        np.testing.assert_allclose(own, 2.0 * np.array(other), rtol=1e-12)
    assert (found.answers == 0).all()
    # Half a box is better than none, which two of the answers have; a full one is better still.
    assert found.boxes[0][0] > found.boxes[2][0] > 0
    assert found.boxes[1][0] > found.boxes[2][1] > found.boxes[0][1]
    assert found.boxes[2][2] < 0


def test_values_are_those_of_the_present_stage():
    shares = [[(0, 0.6), (1, 0.8)], [(0, 0.95), (1, 0.7)]]
    for stage, value in (
        ("beginner", lambda share: 1.0 if share >= 0.75 else share if share >= 0.5 else 0.0),
        ("advanced", lambda share: 1.0 if share >= 0.9 else share if share >= 0.75 else 0.0),
    ):
        given = groups(
            *(answer(*(((LEFT, RIGHT)[target], share) for target, share in own)) for own in shares), stage=stage
        )
        expected, _ = in_python([[(target, value(share)) for target, share in own] for own in shares])
        for own, other in zip(BoxAdvantage()(given).boxes, expected, strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-12)


def test_a_list_that_ends_too_early_is_compared_with_those_that_went_on():
    given = groups(answer((LEFT, 1.0), (RIGHT, 0.8)), answer((LEFT, 0.9)), answer((LEFT, 0.8), (RIGHT, 0.4)))
    found = BoxAdvantage(end_weight=0.5)(given)
    _, baseline = in_python([[(0, 1.0), (1, 0.8)], [(0, 0.9)], [(0, 0.8), (1, 0.4)]])
    given_up = [0.0, -baseline[1], 0.0]
    expected = [0.5 * (value - statistics.mean(given_up)) for value in given_up]
    torch.testing.assert_close(found.ends, torch.tensor([expected]))
    assert (BoxAdvantage(end_weight=0.0)(given).ends == 0).all()


def test_a_wrong_label_makes_the_label_less_likely_and_not_the_box():
    given = groups(answer((LEFT, 1.0)), answer((LEFT, 0.9), label="dog"), answer((LEFT, 0.5)), targets=(LEFT,))
    found = BoxAdvantage(box_weight=3.0)(given)
    for own, values in ((found.boxes, [1.0, 0.9, 0.5]), (found.items, [1.0, 0.0, 0.5])):
        expected, _ = in_python([[(0, value)] for value in values])
        np.testing.assert_allclose(np.concatenate(own), 3.0 * np.concatenate(expected), rtol=1e-12)
    assert found.boxes[1][0] > 0 > found.items[1][0]


@pytest.mark.parametrize(
    "given",
    [
        groups(answer((LEFT, 0.7), (RIGHT, 0.7)), answer((RIGHT, 0.7), (LEFT, 0.7))),
        groups(answer((NOWHERE, 1.0)), answer(), targets=()),
        groups(answer(), answer()),
    ],
    ids=["equal boxes", "no object", "no box"],
)
def test_without_a_difference_between_boxes_none_has_an_advantage(given):
    found = BoxAdvantage(end_weight=1.0)(given)
    assert all((own == 0).all() for own in (*found.boxes, *found.items))
    assert (found.ends == 0).all()
    torch.testing.assert_close(found.answers, 0.5 * GroupAdvantage()(given).answers)


def test_each_term_by_itself():
    """GDPO: terms are scaled in their group, weighted, summed, and scaled over the batch."""
    generator = torch.Generator().manual_seed(0)
    terms = {"wide": 10 * torch.rand(3, 4, generator=generator), "narrow": torch.rand(3, 4, generator=generator) / 10}
    weights = {"wide": 1.0, "narrow": 2.0}
    total = sum(weights[name] * values for name, values in terms.items())
    given = RewardedGroups(total=total, terms=terms, weights=weights, matches=[], criterion=STAGES["off"])
    found = GroupAdvantage(normalise="terms")(given).answers.numpy()
    summed = np.zeros((3, 4))
    for name, values in terms.items():
        array = values.double().numpy()
        summed += weights[name] * (array - array.mean(1, keepdims=True)) / (array.std(1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(found, summed / (summed.std(ddof=1) + 1e-4), rtol=1e-4)
    # The narrow term counts here; in the plain sum it hardly does.
    plain = GroupAdvantage()(given).answers.numpy()
    narrow = terms["narrow"].numpy().ravel()
    assert np.corrcoef(found.ravel(), narrow)[0, 1] > np.corrcoef(plain.ravel(), narrow)[0, 1] + 0.3


def test_tokens_belong_to_the_item_in_which_they_end():
    """Items are 1..5 and 6..10 of a text of 13, and their boxes 2..4 and 7..9: "[(12),(34)]..."."""

    def spans(items, boxes, ends):
        one = answer(*[(LEFT, 1.0)] * len(items))
        return replace(one, item_spans=items, box_spans=boxes, token_ends=ends)

    advantages = Advantages(
        answers=torch.tensor([[1.0, 2.0]]),
        items=[np.array([10.0, 20.0]), np.zeros(0)],
        boxes=[np.array([11.0, 21.0]), np.zeros(0)],
        ends=torch.tensor([[100.0, 200.0]]),
    )
    # The third token ends in the first box; the fifth is the comma, with which the second item begins.
    ends = (1, 2, 3, 5, 6, 8, 9, 10, 11, 13, 13)
    detections = [spans(((1, 5), (6, 10)), ((2, 4), (7, 9)), ends), spans((), (), (2, 2))]
    found = advantages.of_tokens(detections, 12)
    assert found.shape == (1, 2, 12)
    assert found[0, 0].tolist() == [11.0, 11.0, 12.0, 12.0, 21.0, 22.0, 22.0, 21.0, 101.0, 101.0, 101.0, 1.0]
    assert found[0, 1].tolist() == [202.0] * 2 + [2.0] * 10


def test_replaced_groups_are_whole():
    first = groups(answer((LEFT, 1.0)), answer())
    second = groups(answer((RIGHT, 0.5)), answer((LEFT, 0.2)))

    def joined(a, b):
        return RewardedGroups(
            total=torch.cat([a.total, b.total]),
            terms={name: torch.cat([a.terms[name], b.terms[name]]) for name in a.terms},
            weights=a.weights,
            matches=[*a.matches, *b.matches],
            criterion=a.criterion,
        )

    merged = joined(first, first).replaced(joined(second, second), torch.tensor([False, True]))
    assert torch.equal(merged.total, torch.cat([first.total, second.total]))
    assert all(
        torch.equal(merged.terms[name], torch.cat([first.terms[name], second.terms[name]])) for name in first.terms
    )
    assert merged.matches == [*first.matches, *second.matches]
