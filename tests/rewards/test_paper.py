"""The paper's rewards: dual format, recall and precision."""

import pytest

from vr1.rewards import STAGES, Criterion, DualFormat, Precision, Recall


@pytest.mark.parametrize(
    ("well_formed", "valid", "paper", "released", "released_without_targets"),
    [(True, True, 1, 1, 0), (True, False, 0, 1, 0), (False, False, 0, 0, 1)],
)
def test_dual_format_values(matched, well_formed, valid, paper, released, released_without_targets):
    match = matched([0.9], well_formed=well_formed, valid=valid)
    assert DualFormat().score(match, Criterion()) == paper
    assert DualFormat(check="template").score(match, Criterion()) == released
    nothing = matched([], well_formed=well_formed, valid=valid)
    assert DualFormat().score(nothing, Criterion()) == paper
    assert DualFormat(check="template").score(nothing, Criterion()) == released_without_targets


def test_dual_format_an_unknown_check_is_an_error():
    with pytest.raises(ValueError, match="check='json'"):
        DualFormat(check="json")


@pytest.mark.parametrize(
    ("stage", "overlap", "num_targets", "expected"),
    [
        ("beginner", [0.9, 0.6, 0.4], 3, 2 / 3),
        ("beginner", [0.9, 0.6, 0.5, 0.4], 4, 1.0),
        ("beginner", [0.9], 3, 0.0),
        ("beginner", [], 3, 0.0),
        ("advanced", [0.9, 0.74, 0.8, 0.75], 4, 0.75),
        ("advanced", [0.9] * 9, 10, 1.0),
        ("advanced", [0.7, 0.9], 2, 0.0),
        ("off", [0.9, 0.4, 0.4, 0.4], 4, 0.25),
    ],
)
def test_recall_values(matched, stage, overlap, num_targets, expected):
    match = matched(overlap, num_targets=num_targets)
    assert Recall().score(match, STAGES[stage]) == pytest.approx(expected)


def test_redundant_boxes_cost_no_recall(matched):
    assert Recall().score(matched([0.9], num_predicted=9), Criterion()) == 1


def test_fixed_thresholds(matched):
    match = matched([0.8, 0.8, 0.1])
    assert Recall().score(match, STAGES["advanced"]) == 0
    assert Recall(xi1=0.5, xi2=0.75).score(match, STAGES["advanced"]) == pytest.approx(2 / 3)


def test_recall_without_targets(matched):
    assert Recall().score(matched([]), Criterion()) == 1
    assert Recall().score(matched([], valid=False), Criterion()) == 0
    assert Recall().score(matched([], num_predicted=1), Criterion()) == 0


@pytest.mark.parametrize("thresholds", [{"xi1": 0.5}, {"xi2": 0.5}, {"xi1": 0.9, "xi2": 0.5}])
def test_recall_wrong_thresholds_are_errors(thresholds):
    with pytest.raises(ValueError, match="xi1"):
        Recall(**thresholds)


@pytest.mark.parametrize(
    ("stage", "overlap", "num_predicted", "predicted", "over_matched"),
    [
        ("beginner", [0.8, 0.6, 0.3], 3, 1.6 / 3, 1.6 / 3),
        ("beginner", [0.8, 0.6], 4, 0.4, 0.8),
        ("advanced", [0.95, 0.8, 0.6, 0.0], 5, 0.36, 0.45),
        ("off", [0.8, 0.6, 0.3, -0.4], 4, 0.425, 0.425),
        ("off", [], 0, 0.0, 0.0),
    ],
)
def test_precision_values(matched, stage, overlap, num_predicted, predicted, over_matched):
    match = matched(overlap, num_predicted=num_predicted, num_targets=5)
    assert Precision().score(match, STAGES[stage]) == pytest.approx(predicted)
    assert Precision(normalise_by="matched").score(match, STAGES[stage]) == pytest.approx(over_matched)


def test_precision_without_targets(matched):
    assert Precision().score(matched([]), Criterion()) == 1
    assert Precision().score(matched([], valid=False), Criterion()) == 0
    assert Precision().score(matched([], num_predicted=2), Criterion()) == 0


def test_precision_an_unknown_count_is_an_error():
    with pytest.raises(ValueError, match="normalise_by='true'"):
        Precision(normalise_by="true")
