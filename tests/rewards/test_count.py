import pytest

from vr1.rewards import Count, Criterion


@pytest.mark.parametrize(("predicted", "true", "expected"), [(3, 3, 1), (1, 4, 0.25), (4, 1, 0.25), (0, 2, 0)])
def test_values(matched, predicted, true, expected):
    assert Count().score(matched([], predicted, true), Criterion()) == expected


def test_without_targets(matched):
    assert Count().score(matched([]), Criterion()) == 1
    assert Count().score(matched([], valid=False), Criterion()) == 0
    assert Count().score(matched([], num_predicted=1), Criterion()) == 0
