import pytest

from vr1.rewards import STAGES, Criterion, Recall


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
def test_values(matched, stage, overlap, num_targets, expected):
    match = matched(overlap, num_targets=num_targets)
    assert Recall().score(match, STAGES[stage]) == pytest.approx(expected)


def test_redundant_boxes_cost_no_recall(matched):
    assert Recall().score(matched([0.9], num_predicted=9), Criterion()) == 1


def test_kept_thresholds(matched):
    match = matched([0.8, 0.8, 0.1])
    assert Recall().score(match, STAGES["advanced"]) == 0
    assert Recall(xi1=0.5, xi2=0.75).score(match, STAGES["advanced"]) == pytest.approx(2 / 3)


def test_without_targets(matched):
    assert Recall().score(matched([]), Criterion()) == 1
    assert Recall().score(matched([], valid=False), Criterion()) == 0
    assert Recall().score(matched([], num_predicted=1), Criterion()) == 0


@pytest.mark.parametrize("thresholds", [{"xi1": 0.5}, {"xi2": 0.5}, {"xi1": 0.9, "xi2": 0.5}])
def test_refuses_wrong_thresholds(thresholds):
    with pytest.raises(ValueError, match="xi1"):
        Recall(**thresholds)
