import pytest

from vr1.rewards import Criterion, Iou


@pytest.mark.parametrize(
    ("overlap", "num_predicted", "num_targets", "larger", "over_matched"),
    [
        ([0.8], 1, 1, 0.8, 0.8),
        ([0.8, 0.4], 4, 2, 0.3, 0.6),
        ([0.8, 0.4], 2, 3, 0.4, 0.6),
        ([0.5, -0.4], 2, 2, 0.25, 0.25),
        ([], 0, 3, 0, 0),
    ],
)
def test_values(matched, overlap, num_predicted, num_targets, larger, over_matched):
    match = matched(overlap, num_predicted, num_targets)
    assert Iou().score(match, Criterion()) == pytest.approx(larger)
    assert Iou(normalise_by="matched").score(match, Criterion()) == pytest.approx(over_matched)


def test_without_targets(matched):
    assert Iou().score(matched([]), Criterion()) == 1
    assert Iou().score(matched([], num_predicted=1), Criterion()) == 0


def test_refuses_an_unknown_count():
    with pytest.raises(ValueError, match="normalise_by='all'"):
        Iou(normalise_by="all")
