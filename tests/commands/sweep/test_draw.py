"""The parameters of the trials."""

import math

import pytest

from tests.commands.sweep.files import write_sweep
from vr1.commands.sweep import parameters_of, read_plan


def drawn(tmp_path, description, count=400, method="random", seed=0):
    plan = read_plan(write_sweep(tmp_path, method=method, parameters={"p": description}))
    return [parameters["p"] for parameters in parameters_of(plan, count, seed)]


def test_a_grid_has_every_combination_once(tmp_path):
    rows = parameters_of(read_plan(write_sweep(tmp_path)), None)
    assert len(rows) == 6
    assert len({tuple(row.values()) for row in rows}) == 6
    assert parameters_of(read_plan(write_sweep(tmp_path)), 4) == rows[:4]
    assert parameters_of(read_plan(write_sweep(tmp_path, run_cap=2)), 4) == rows[:2]


def test_a_trial_does_not_depend_on_how_many_there_are(tmp_path):
    description = {"min": 0.0, "max": 1.0}
    assert drawn(tmp_path, description, 50)[:5] == drawn(tmp_path, description, 5)
    assert drawn(tmp_path, description, 5) != drawn(tmp_path, description, 5, seed=1)


def test_distributions(tmp_path):
    assert set(drawn(tmp_path, {"value": 3})) == {3}
    assert set(drawn(tmp_path, {"min": 2, "max": 4})) == {2, 3, 4}
    uniform = drawn(tmp_path, {"min": 2.0, "max": 4.0})
    assert 2 <= min(uniform) < 2.1 < 3.9 < max(uniform) <= 4
    logarithmic = drawn(tmp_path, {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-2})
    assert math.log10(sorted(logarithmic)[200]) == pytest.approx(-4, abs=0.4)
    stepped = drawn(tmp_path, {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.25})
    assert set(stepped) == {0, 0.25, 0.5, 0.75, 1}
    weighted = drawn(tmp_path, {"values": ["a", "b"], "probabilities": [0.9, 0.1]})
    assert 320 < weighted.count("a") < 395
    assert sum(drawn(tmp_path, {"distribution": "normal", "mu": 5})) / 400 == pytest.approx(5, abs=0.3)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"distribution": "betta"}, "distribution=betta is not known here"),
        ({"distribution": "uniform", "min": "low", "max": 1}, "cannot be sampled \\("),
        ({"distribution": "uniform", "min": True, "max": 2.0}, "min=True is no number"),
        ({"distribution": "int_uniform", "min": 1.5, "max": 3}, "no whole numbers"),
        ({"min": 1}, "give value, values, or min and max"),
        ({"distribution": "log_uniform_values", "min": 0.1}, "log_uniform_values needs max; add it"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "cannot be sampled \\("),
        ({"values": [1, 2], "probabilities": [1]}, "cannot be sampled \\("),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0}, "cannot be sampled \\("),
    ],
)
def test_mistakes(description, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        drawn(tmp_path, description)


def test_counts(tmp_path):
    with pytest.raises(ValueError, match="--count 0: give at least 1"):
        drawn(tmp_path, {"value": 1}, 0)
    with pytest.raises(ValueError, match="give --count 6"):
        drawn(tmp_path, {"value": 1}, None)
    with pytest.raises(ValueError, match="a grid needs values"):
        drawn(tmp_path, {"min": 0, "max": 1}, method="grid")


def quantiles(values):
    ordered = sorted(values)
    return ordered[len(ordered) // 4], ordered[len(ordered) // 2], ordered[3 * len(ordered) // 4]


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        # Uniform between the logarithms -6 and -2, so the quartiles are e^-5, e^-4 and e^-3.
        ({"distribution": "log_uniform", "min": -6, "max": -2}, [math.exp(-5), math.exp(-4), math.exp(-3)]),
        ({"distribution": "log_uniform_values", "min": "1e-4", "max": 1}, [1e-3, 1e-2, 1e-1]),
        # 1 / x between e^-6 and e^-2.
        ({"distribution": "inv_log_uniform", "min": -6, "max": -2}, [math.exp(3), math.exp(4), math.exp(5)]),
        ({"distribution": "inv_log_uniform_values", "min": 1e-4, "max": 1}, [1e-3, 1e-2, 1e-1]),
        ({"distribution": "log_normal", "mu": 2, "sigma": 1}, [math.exp(2 - 0.6745), math.exp(2), math.exp(2.6745)]),
        ({"distribution": "beta", "a": 1, "b": 1}, [0.25, 0.5, 0.75]),
    ],
)
def test_distributions_of_weights_and_biases(tmp_path, description, expected):
    assert quantiles(drawn(tmp_path, description, 4000)) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize(
    ("description", "within"),
    [
        ({"distribution": "q_normal", "mu": 10, "sigma": 3, "q": 2}, (-10, 30)),
        ({"distribution": "q_log_uniform", "min": 0, "max": 3, "q": 2}, (0, 22)),
        ({"distribution": "q_log_uniform_values", "min": 1, "max": 20, "q": 2}, (0, 22)),
        ({"distribution": "q_log_normal", "mu": 1, "sigma": 0.5, "q": 2}, (0, 30)),
    ],
)
def test_steps(tmp_path, description, within):
    values = drawn(tmp_path, description)
    assert all(value % 2 == 0 for value in values)
    assert within[0] <= min(values) < max(values) <= within[1]
