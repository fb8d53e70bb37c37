import pytest

from tests.rewards.test_reward import found, true
from vr1.matching import BoxMatcher
from vr1.rewards import Criterion, LabelAccuracy

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
def test_values(answer, truth, expected, rule):
    match = BoxMatcher(label_rule=rule)(found(*answer), true(*truth))
    assert LabelAccuracy().score(match, Criterion()) == expected
