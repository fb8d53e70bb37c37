"""The parameters of each trial: every combination, or random ones."""

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

from vr1.commands.sweep.plan import Plan
from vr1.errors import UserError

Draw = Callable[[random.Random, dict[str, Any]], Any]


def parameters_of(plan: Plan, count: int | None, seed: int = 0) -> list[dict[str, Any]]:
    """What every trial sets, in order; trial n is the same however many are asked for.

    Args:
        plan: a checked sweep.
        count: how many trials; None takes all combinations of a grid, or the file's ``run_cap``.
        seed: of the random draws.

    Raises:
        UserError: if the count is missing or senseless, or a distribution is not known or incomplete.

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
        raise UserError("a random sweep has no end of its own; say how many trials: --count 6")
    return [_drawn(plan, f"{seed}/{index}") for index in range(count)]


def _drawn(plan: Plan, seed: str) -> dict[str, Any]:
    # A stream for each trial and parameter: another count, or one parameter more, leaves the others as they were.
    return {
        name: _draw(name, description, random.Random(f"{seed}/{name}")) for name, description in plan.parameters.items()
    }


def _choices(name: str, description: dict[str, Any]) -> list[Any]:
    if "value" in description:
        return [description["value"]]
    if "values" in description:
        return list(description["values"])
    raise UserError(f"parameters.{name}: a grid needs values; list them, or give --method random")


def _draw(name: str, description: dict[str, Any], chance: random.Random) -> Any:
    kind = description.get("distribution") or _kind(name, description)
    if kind not in _DRAWS:
        raise UserError(f"parameters.{name}: distribution={kind} is not known here; use {', '.join(_DRAWS)}")
    try:
        return _DRAWS[kind](chance, description)
    except KeyError as error:
        raise UserError(f"parameters.{name}: distribution={kind} needs {error.args[0]}; add it") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"parameters.{name}={description}: cannot be drawn from ({error}); mend its numbers") from None


def _kind(name: str, description: dict[str, Any]) -> str:
    """The distribution that is meant where none is named, as Weights & Biases has it."""
    if "value" in description:
        return "constant"
    if "values" in description:
        return "categorical"
    if {"min", "max"} <= set(description):
        whole = all(isinstance(description[end], int) for end in ("min", "max"))
        return "int_uniform" if whole else "uniform"
    raise UserError(f"parameters.{name}={description}: give value, values, or min and max")


def _categorical(chance: random.Random, found: dict[str, Any]) -> Any:
    return chance.choices(found["values"], weights=found.get("probabilities"))[0]


def _uniform(chance: random.Random, found: dict[str, Any]) -> float:
    return _figures(chance.uniform(found["min"], found["max"]))


def _q_uniform(chance: random.Random, found: dict[str, Any]) -> float:
    step = found.get("q", 1.0)
    return _figures(round(chance.uniform(found["min"], found["max"]) / step) * step)


def _log_uniform_values(chance: random.Random, found: dict[str, Any]) -> float:
    return _figures(math.exp(chance.uniform(math.log(found["min"]), math.log(found["max"]))))


def _normal(chance: random.Random, found: dict[str, Any]) -> float:
    return _figures(chance.gauss(found.get("mu", 0.0), found.get("sigma", 1.0)))


def _figures(value: float) -> float:
    """Four figures: more say nothing, and make every table unreadable."""
    return float(f"{value:.4g}")


_DRAWS: dict[str, Draw] = {
    "constant": lambda _, found: found["value"],
    "categorical": _categorical,
    "categorical_w_probabilities": _categorical,
    "int_uniform": lambda chance, found: chance.randint(found["min"], found["max"]),
    "uniform": _uniform,
    "q_uniform": _q_uniform,
    "log_uniform_values": _log_uniform_values,
    "normal": _normal,
}
