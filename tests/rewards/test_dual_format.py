import pytest

from vr1.rewards import Criterion, DualFormat


@pytest.mark.parametrize(
    ("well_formed", "valid", "paper", "released", "released_without_targets"),
    [(True, True, 1, 1, 0), (True, False, 0, 1, 0), (False, False, 0, 0, 1)],
)
def test_values(matched, well_formed, valid, paper, released, released_without_targets):
    match = matched([0.9], well_formed=well_formed, valid=valid)
    assert DualFormat().score(match, Criterion()) == paper
    assert DualFormat(check="template").score(match, Criterion()) == released
    nothing = matched([], well_formed=well_formed, valid=valid)
    assert DualFormat().score(nothing, Criterion()) == paper
    assert DualFormat(check="template").score(nothing, Criterion()) == released_without_targets


def test_refuses_an_unknown_check():
    with pytest.raises(ValueError, match="check='json'"):
        DualFormat(check="json")
