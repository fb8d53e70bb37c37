"""Rewards that count: completeness, number of boxes, labels."""

import pytest

from tests.rewards.test_reward import detections_of, targets_of
from vr1.matching import BoxMatcher
from vr1.rewards import Completeness, Count, Criterion, LabelAccuracy


@pytest.mark.parametrize(
    ("overlap", "num_predicted", "num_targets", "miss_rate", "false_alarm_rate"),
    [
        ([0.9, 0.9], 2, 2, 0, 0),
        ([0.9, 0.4], 2, 2, 0.5, 0.5),
        ([0.9], 1, 4, 0.75, 0),
        ([0.9], 5, 1, 0, 0.8),
        ([0.1], 1, 1, 1, 1),
    ],
)
def test_completeness_values(matched, overlap, num_predicted, num_targets, miss_rate, false_alarm_rate):
    match = matched(overlap, num_predicted, num_targets)
    assert Completeness().score(match, Criterion(xi0=0.5)) == pytest.approx(1 - (miss_rate + false_alarm_rate) / 2)


def test_an_empty_answer_earns_nothing_where_the_image_has_objects(matched):
    assert Completeness().score(matched([], num_targets=2), Criterion()) == 0
    assert Completeness().score(matched([]), Criterion()) == 1
    assert Completeness().score(matched([], num_predicted=2), Criterion()) == 0


@pytest.mark.parametrize(("predicted", "true", "expected"), [(3, 3, 1), (1, 4, 0.25), (4, 1, 0.25), (0, 2, 0)])
def test_count_values(matched, predicted, true, expected):
    assert Count().score(matched([], predicted, true), Criterion()) == expected


def test_count_without_targets(matched):
    assert Count().score(matched([]), Criterion()) == 1
    assert Count().score(matched([], valid=False), Criterion()) == 0
    assert Count().score(matched([], num_predicted=1), Criterion()) == 0


BOX, OTHER = [0, 0, 10, 10], [50, 50, 60, 60]


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        ([(BOX, "cat"), (OTHER, "dog")], [(BOX, "cat"), (OTHER, "dog")], 1),
        ([(BOX, "CAT ."), (OTHER, "cat")], [(BOX, "cat"), (OTHER, "dog")], 0.5),
        ([(BOX, "dog")], [(BOX, "cat")], 0),
        ([], [(BOX, "cat")], 0),
        ([], [], 1),
        ([(BOX, "cat")], [], 0),
    ],
)
@pytest.mark.parametrize("rule", ["zero", "ignore"])
def test_label_accuracy_values(answer, truth, expected, rule):
    match = BoxMatcher(label_rule=rule)(detections_of(*answer), targets_of(*truth))
    assert LabelAccuracy().score(match, Criterion()) == expected
