"""Reads and checks a sweep file before the first trial."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from vr1.errors import UserError

MACROS = ("${env}", "${interpreter}", "${program}", "${args}", "${args_no_equals}")
_METRIC = {"name": "val/map", "goal": "maximize"}
_KEYS = {
    "program", "method", "metric", "parameters", "command", "name", "description", "project", "entity",
    "early_terminate", "run_cap",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The contents of a sweep file.

    Attributes:
        name: name of the sweep and of its folder.
        method: ``grid`` or ``random``.
        metric: the logged metric to compare trials by; ``val/map`` where the file names none.
        goal: ``maximize`` or ``minimize``.
        command: arguments of the command, macros included.
        program: value of ``${program}``.
        parameters: description of each parameter by its name, in the file's order.
        limit: largest number of trials (``run_cap``); None if the file has none.
        text: the text of the file.
        ends_early: whether the file sets early stopping, which only the server of Weights & Biases does.
        names_metric: whether the file names the metric; without one a trial may also not log it.
    """

    name: str
    method: Literal["grid", "random"]
    metric: str
    goal: Literal["maximize", "minimize"]
    command: tuple[str, ...]
    program: str
    parameters: dict[str, dict[str, Any]]
    limit: int | None
    text: str
    ends_early: bool = False
    names_metric: bool = True


def read_plan(path: Path, method: str | None = None) -> Plan:
    """Read a sweep file.

    Args:
        path: a YAML file such as ``wandb sweep`` takes.
        method: replaces the method of the file.

    Raises:
        UserError: the file is missing or faulty; the message names the key, its value and the fix.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a sweep such as configs/sweeps/training.yaml")
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())}); fix the file") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: has no settings; a sweep has method, metric, command and parameters")
    if unknown := sorted(set(content) - _KEYS):
        raise UserError(f"{path}: {', '.join(map(str, unknown))} is no key of a sweep; the keys are {sorted(_KEYS)}")
    metric = content.get("metric", _METRIC)
    if not isinstance(metric, dict) or not metric.get("name"):
        raise UserError(f"{path}: metric={metric!r} names nothing; write metric: {{name: val/map, goal: maximize}}")
    goal = metric.get("goal", "minimize")
    if goal not in ("maximize", "minimize"):
        raise UserError(f"{path}: metric.goal={goal!r}; give maximize or minimize")
    return Plan(
        name=str(content.get("name") or path.stem),
        method=_method(path, method or content.get("method")),
        metric=str(metric["name"]),
        goal=goal,
        command=_command(path, content),
        program=str(content.get("program", "")),
        parameters=_parameters(path, content.get("parameters")),
        limit=_limit(path, content.get("run_cap")),
        text=text,
        ends_early=bool(content.get("early_terminate")),
        names_metric="metric" in content,
    )


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys, of which YAML silently takes the last, and reads ``1e-6`` as the number that it is."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is written twice", node.start_mark)
        return super().construct_mapping(node, deep)


# PyYAML takes a number without a point, or without a sign after the e, for a text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+"),
    list("-+.0123456789"),
)


def _method(path: Path, method: Any) -> Literal["grid", "random"]:
    if method == "grid":
        return "grid"
    if method == "random":
        return "random"
    if method in ("bayes", "custom"):
        raise UserError(f"{path}: method={method} needs the server of Weights & Biases; here give --method random")
    raise UserError(f"{path}: method={method!r}; give grid or random")


def _limit(path: Path, cap: Any) -> int | None:
    if cap is None or (isinstance(cap, int) and not isinstance(cap, bool) and cap > 0):
        return cap
    raise UserError(f"{path}: run_cap={cap!r}; give the number of trials, at least 1")


def _command(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    command = content.get("command") or []
    if not isinstance(command, list):
        raise UserError(f"{path}: command={command!r}; write it as a list of arguments")
    arguments = tuple(str(argument) for argument in command)
    macros = [macro for argument in arguments for macro in re.findall(r"\$\{\w+\}", argument)]
    if not any(macro in ("${args}", "${args_no_equals}") for macro in macros):
        raise UserError(f"{path}: the command has no ${{args}}, so all trials would be the same; add it at the end")
    if unknown := sorted(set(macros) - set(MACROS)):
        raise UserError(f"{path}: {', '.join(unknown)} in the command is not a known macro; use {', '.join(MACROS)}")
    if "${program}" in macros and not content.get("program"):
        raise UserError(f"{path}: the command has ${{program}}, but program is not set; set it")
    return arguments


def _parameters(path: Path, found: Any, above: str = "") -> dict[str, dict[str, Any]]:
    """The description of each parameter; one in another is named by its path, as ``model.optimizer.lr``."""
    key = f"parameters.{above.rstrip('.')}.parameters" if above else "parameters"
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path}: {key}={found!r}; name at least one, as in model.optimizer.lr: {{values: [...]}}")
    parameters: dict[str, dict[str, Any]] = {}
    for name, description in found.items():
        full = f"{above}{name}"
        if not isinstance(description, dict):
            raise UserError(f"{path}: parameters.{full}={description!r}; write {{value: {description!r}}}")
        if "values" in description and not (isinstance(description["values"], list) and description["values"]):
            raise UserError(f"{path}: parameters.{full}.values={description['values']!r}; list one or more")
        inner = {full: description}
        if "parameters" in description:
            inner = _parameters(path, description["parameters"], f"{full}.")
        if twice := sorted(set(inner) & set(parameters)):
            raise UserError(f"{path}: parameters.{twice[0]} is written twice, once nested; keep one")
        parameters |= inner
    return parameters
