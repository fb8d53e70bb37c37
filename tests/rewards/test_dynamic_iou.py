import pytest

from vr1.rewards import Criterion, DynamicIou


@pytest.mark.parametrize(("threshold", "expected"), [(0.85, 0.6), (0.95, 0.32), (0.99, 0.0), (0.0, 0.6)])
def test_the_threshold_is_the_criterions(matched, threshold, expected):
    assert DynamicIou().score(matched([0.96, 0.84 + 0.02, -0.3]), Criterion(xi0=threshold)) == pytest.approx(
        expected, abs=0.01
    )


def test_redundant_and_missing_boxes_cost(matched):
    assert DynamicIou().score(matched([0.9], num_predicted=2), Criterion()) == pytest.approx(0.45)
    assert DynamicIou().score(matched([0.9], num_targets=3), Criterion()) == pytest.approx(0.3)


def test_without_targets(matched):
    assert DynamicIou().score(matched([]), Criterion()) == 1
    assert DynamicIou().score(matched([], valid=False), Criterion()) == 0
