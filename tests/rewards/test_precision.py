import pytest

from vr1.rewards import STAGES, Criterion, Precision


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
def test_values(matched, stage, overlap, num_predicted, predicted, over_matched):
    match = matched(overlap, num_predicted=num_predicted, num_targets=5)
    assert Precision().score(match, STAGES[stage]) == pytest.approx(predicted)
    assert Precision(normalise_by="matched").score(match, STAGES[stage]) == pytest.approx(over_matched)


def test_without_targets(matched):
    assert Precision().score(matched([]), Criterion()) == 1
    assert Precision().score(matched([], valid=False), Criterion()) == 0
    assert Precision().score(matched([], num_predicted=2), Criterion()) == 0


def test_refuses_an_unknown_count():
    with pytest.raises(ValueError, match="normalise_by='true'"):
        Precision(normalise_by="true")
