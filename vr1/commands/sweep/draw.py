"""The settings of each trial: all combinations of a grid, or random values."""

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

from vr1.commands.sweep.plan import Plan
from vr1.errors import UserError

Sampler = Callable[[random.Random, dict[str, Any]], Any]


def parameters_of(plan: Plan, count: int | None, seed: int = 0) -> list[dict[str, Any]]:
    """The settings of every trial, in order; trial n does not depend on the number of trials.

    Args:
        plan: a checked sweep.
        count: number of trials; None takes all combinations of a grid, or the file's ``run_cap``.
        seed: seed of random values.

    Raises:
        UserError: the count is missing or below 1, or a distribution is unknown or incomplete.

    Example:
        >>> from vr1.commands.sweep.plan import Plan
        >>> plan = Plan(name="", method="grid", metric="m", goal="maximize", command=(), program="", text="",
        ...     limit=None, parameters={"lr": {"values": [0.1, 0.2]}, "kl": {"value": 0}})
        >>> parameters_of(plan, None)
        [{'lr': 0.1, 'kl': 0}, {'lr': 0.2, 'kl': 0}]
    """
    if count is not None and count < 1:
        raise UserError(f"--count {count}: give at least 1 trial")
    if plan.limit is not None:
        count = plan.limit if count is None else min(count, plan.limit)
    if plan.method == "grid":
        choices = [_choices(name, description) for name, description in plan.parameters.items()]
        rows = itertools.islice(itertools.product(*choices), count)
        return [dict(zip(plan.parameters, row, strict=True)) for row in rows]
    if count is None:
        raise UserError("a random sweep needs the number of trials: give --count 6")
    return [_sampled(plan, f"{seed}/{index}") for index in range(count)]


def _sampled(plan: Plan, seed: str) -> dict[str, Any]:
    # A generator for each trial and parameter: a change of count or of one parameter does not change other values.
    return {
        name: _sample(name, description, random.Random(f"{seed}/{name}"))
        for name, description in plan.parameters.items()
    }


def _choices(name: str, description: dict[str, Any]) -> list[Any]:
    if "value" in description:
        return [description["value"]]
    if "values" in description:
        return list(description["values"])
    raise UserError(f"parameters.{name}: a grid needs values; list them, or give --method random")


def _sample(name: str, description: dict[str, Any], generator: random.Random) -> Any:
    kind = description.get("distribution") or _kind(name, description)
    if kind not in _SAMPLERS:
        raise UserError(f"parameters.{name}: distribution={kind} is not known here; use {', '.join(_SAMPLERS)}")
    try:
        return _SAMPLERS[kind](generator, description)
    except KeyError as error:
        raise UserError(f"parameters.{name}: distribution={kind} needs {error.args[0]}; add it") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"parameters.{name}={description}: cannot be sampled ({error}); fix its numbers") from None


def _kind(name: str, description: dict[str, Any]) -> str:
    """The distribution of a parameter that names none, by the rules of Weights & Biases."""
    if "value" in description:
        return "constant"
    if "values" in description:
        return "categorical"
    if {"min", "max"} <= set(description):
        integers = all(type(description[end]) is int for end in ("min", "max"))
        return "int_uniform" if integers else "uniform"
    raise UserError(f"parameters.{name}={description}: give value, values, or min and max")


def _number(spec: dict[str, Any], name: str, default: float | None = None) -> float:
    """A number of a description, also one in quotes."""
    value = spec[name] if default is None else spec.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"{name}={value!r} is no number")
    return float(value) if isinstance(value, str) else value


def _categorical(generator: random.Random, spec: dict[str, Any]) -> Any:
    return generator.choices(spec["values"], weights=spec.get("probabilities"))[0]


def _int_uniform(generator: random.Random, spec: dict[str, Any]) -> int:
    least, most = _number(spec, "min"), _number(spec, "max")
    if least != int(least) or most != int(most):
        raise ValueError("min and max are no whole numbers")
    return generator.randint(int(least), int(most))


def _between(generator: random.Random, spec: dict[str, Any]) -> float:
    return generator.uniform(_number(spec, "min"), _number(spec, "max"))


def _log_between(generator: random.Random, spec: dict[str, Any]) -> float:
    """``log_uniform``: min and max are natural logarithms."""
    return math.exp(_between(generator, spec))


def _log_between_values(generator: random.Random, spec: dict[str, Any]) -> float:
    return math.exp(generator.uniform(math.log(_number(spec, "min")), math.log(_number(spec, "max"))))


def _inverse_log_between(generator: random.Random, spec: dict[str, Any]) -> float:
    """``inv_log_uniform``: the logarithm of 1 / x is uniform between min and max."""
    return math.exp(-_between(generator, spec))


def _inverse_log_between_values(generator: random.Random, spec: dict[str, Any]) -> float:
    least, most = _number(spec, "min"), _number(spec, "max")
    return math.exp(-generator.uniform(math.log(1 / most), math.log(1 / least)))


def _gauss(generator: random.Random, spec: dict[str, Any]) -> float:
    return generator.gauss(_number(spec, "mu", 0.0), _number(spec, "sigma", 1.0))


def _log_gauss(generator: random.Random, spec: dict[str, Any]) -> float:
    return math.exp(_gauss(generator, spec))


def _beta(generator: random.Random, spec: dict[str, Any]) -> float:
    return generator.betavariate(_number(spec, "a", 1.0), _number(spec, "b", 1.0))


def _plain(draw: Callable[[random.Random, dict[str, Any]], float]) -> Sampler:
    return lambda generator, spec: _four_digits(draw(generator, spec))


def _stepped(draw: Callable[[random.Random, dict[str, Any]], float]) -> Sampler:
    """In multiples of ``q``."""

    def sample(generator: random.Random, spec: dict[str, Any]) -> float:
        step = _number(spec, "q", 1.0)
        return _four_digits(round(draw(generator, spec) / step) * step)

    return sample


def _four_digits(value: float) -> float:
    """Four significant digits, so that tables stay readable."""
    return float(f"{value:.4g}")


# Source: https://docs.wandb.ai/guides/sweeps/sweep-config-keys, distribution options for random search.
_SAMPLERS: dict[str, Sampler] = {
    "constant": lambda _, spec: spec["value"],
    "categorical": _categorical,
    "categorical_w_probabilities": _categorical,
    "int_uniform": _int_uniform,
    "uniform": _plain(_between),
    "q_uniform": _stepped(_between),
    "log_uniform": _plain(_log_between),
    "log_uniform_values": _plain(_log_between_values),
    "q_log_uniform": _stepped(_log_between),
    "q_log_uniform_values": _stepped(_log_between_values),
    "inv_log_uniform": _plain(_inverse_log_between),
    "inv_log_uniform_values": _plain(_inverse_log_between_values),
    "normal": _plain(_gauss),
    "q_normal": _stepped(_gauss),
    "log_normal": _plain(_log_gauss),
    "q_log_normal": _stepped(_log_gauss),
    "beta": _plain(_beta),
    "q_beta": _stepped(_beta),
}
