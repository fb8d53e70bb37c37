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
        integers = all(isinstance(description[end], int) for end in ("min", "max"))
        return "int_uniform" if integers else "uniform"
    raise UserError(f"parameters.{name}={description}: give value, values, or min and max")


def _categorical(generator: random.Random, spec: dict[str, Any]) -> Any:
    return generator.choices(spec["values"], weights=spec.get("probabilities"))[0]


def _uniform(generator: random.Random, spec: dict[str, Any]) -> float:
    return _four_digits(generator.uniform(spec["min"], spec["max"]))


def _q_uniform(generator: random.Random, spec: dict[str, Any]) -> float:
    step = spec.get("q", 1.0)
    return _four_digits(round(generator.uniform(spec["min"], spec["max"]) / step) * step)


def _log_uniform_values(generator: random.Random, spec: dict[str, Any]) -> float:
    return _four_digits(math.exp(generator.uniform(math.log(spec["min"]), math.log(spec["max"]))))


def _normal(generator: random.Random, spec: dict[str, Any]) -> float:
    return _four_digits(generator.gauss(spec.get("mu", 0.0), spec.get("sigma", 1.0)))


def _four_digits(value: float) -> float:
    """Four significant digits, so that tables stay readable."""
    return float(f"{value:.4g}")


_SAMPLERS: dict[str, Sampler] = {
    "constant": lambda _, spec: spec["value"],
    "categorical": _categorical,
    "categorical_w_probabilities": _categorical,
    "int_uniform": lambda generator, spec: generator.randint(spec["min"], spec["max"]),
    "uniform": _uniform,
    "q_uniform": _q_uniform,
    "log_uniform_values": _log_uniform_values,
    "normal": _normal,
}
