from dataclasses import replace

import pytest

from vr1.rewards import Criterion, Length


@pytest.mark.parametrize(("length", "expected"), [(0, 1), (100, 1), (150, 0.75), (300, 0), (9999, 0)])
def test_values(matched, length, expected):
    match = matched([])
    match = replace(match, detections=replace(match.detections, completion="x" * length))
    assert Length(full_until=100, none_from=300).score(match, Criterion()) == expected


@pytest.mark.parametrize("limits", [(-1, 5), (5, 5), (9, 5)])
def test_refuses_wrong_limits(limits):
    with pytest.raises(ValueError, match=r"full_until=.* needs 0 <= full_until < none_from"):
        Length(*limits)
