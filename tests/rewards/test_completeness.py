import pytest

from vr1.rewards import Completeness, Criterion


@pytest.mark.parametrize(
    ("overlap", "num_predicted", "num_targets", "missed", "made_up"),
    [
        ([0.9, 0.9], 2, 2, 0, 0),
        ([0.9, 0.4], 2, 2, 0.5, 0.5),
        ([0.9], 1, 4, 0.75, 0),
        ([0.9], 5, 1, 0, 0.8),
        ([0.1], 1, 1, 1, 1),
    ],
)
def test_values(matched, overlap, num_predicted, num_targets, missed, made_up):
    match = matched(overlap, num_predicted, num_targets)
    assert Completeness().score(match, Criterion(xi0=0.5)) == pytest.approx(1 - (missed + made_up) / 2)


def test_silence_earns_nothing_where_there_is_something(matched):
    assert Completeness().score(matched([], num_targets=2), Criterion()) == 0
    assert Completeness().score(matched([]), Criterion()) == 1
    assert Completeness().score(matched([], num_predicted=2), Criterion()) == 0
