import pytest

from vr1.rewards import STAGES, Criterion


@pytest.mark.parametrize(
    ("stage", "values"),
    [
        ("beginner", {-0.2: 0, 0.499: 0, 0.5: 0.5, 0.74: 0.74, 0.75: 1, 1.0: 1}),
        ("advanced", {0.5: 0, 0.749: 0, 0.75: 0.75, 0.89: 0.89, 0.9: 1, 1.0: 1}),
        ("off", {-0.2: 0, 0.0: 0, 0.3: 0.3, 0.99: 0.99, 1.0: 1}),
    ],
)
def test_differentiation(stage, values):
    assert {value: STAGES[stage].f(value) for value in values} == values


def test_recall_threshold():
    assert [Criterion(xi0=0.5).hit(overlap) for overlap in (0.49, 0.5, 0.51)] == [0, 1, 1]


def test_strict_leaves_the_threshold_itself_out():
    strict = Criterion(xi0=0.5, xi1=0.5, xi2=0.75, strict=True)
    assert [strict.f(value) for value in (0.49, 0.5, 0.75, 0.76)] == [0, 0.5, 0.75, 1]
    assert [strict.hit(value) for value in (0.49, 0.5, 0.51)] == [0, 0.5, 1]


def test_a_stage_keeps_the_comparison():
    assert Criterion(strict=True).at_stage("advanced") == Criterion(xi0=0.75, xi1=0.75, xi2=0.9, strict=True)


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"xi1": 0.8, "xi2": 0.7}, r"xi1=0\.8, xi2=0\.7"),
        ({"xi1": -0.1}, "xi1"),
        ({"xi2": 1.1}, "xi2"),
        ({"xi0": 2.0}, "xi0"),
        ({"xi2": float("nan")}, "xi2"),
    ],
)
def test_refuses_wrong_thresholds(thresholds, message):
    with pytest.raises(ValueError, match=message):
        Criterion(**thresholds)
