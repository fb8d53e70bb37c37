"""A sweep's file, read and checked before the first trial."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from vr1.errors import UserError

MACROS = ("${env}", "${interpreter}", "${program}", "${args}", "${args_no_equals}")
_KEYS = {
    "program", "method", "metric", "parameters", "command", "name", "description", "project", "entity",
    "early_terminate", "run_cap",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep file asks for.

    Attributes:
        name: of the sweep, and of its folder.
        method: ``grid`` or ``random``.
        metric: the logged metric that counts.
        goal: ``maximize`` or ``minimize``.
        command: words of the command, macros included.
        program: what ``${program}`` stands for.
        parameters: description of each parameter by its name, in the file's order.
        limit: most trials that the file allows, None without ``run_cap``.
        text: the file as it was written.
        ends_early: whether the server of Weights & Biases would end trials that do badly; here none is ended.
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


def read_plan(path: Path, method: str | None = None) -> Plan:
    """Read a sweep file.

    Args:
        path: a YAML file such as ``wandb sweep`` takes.
        method: taken instead of the file's own.

    Raises:
        UserError: naming the key, the value and the mend.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a sweep such as configs/sweeps/training.yaml")
    try:
        text = path.read_text(encoding="utf-8")
        found = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no YAML ({' '.join(str(error).split())}); mend the file") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no settings; a sweep has method, metric, command and parameters")
    if unknown := sorted(set(found) - _KEYS):
        raise UserError(f"{path}: {', '.join(map(str, unknown))} is no key of a sweep; the keys are {sorted(_KEYS)}")
    metric = found.get("metric")
    if not isinstance(metric, dict) or not metric.get("name"):
        raise UserError(f"{path}: metric={metric!r} names nothing; write metric: {{name: val/map, goal: maximize}}")
    goal = metric.get("goal", "minimize")
    if goal not in ("maximize", "minimize"):
        raise UserError(f"{path}: metric.goal={goal!r}; give maximize or minimize")
    return Plan(
        name=str(found.get("name") or path.stem),
        method=_method(path, method or found.get("method")),
        metric=str(metric["name"]),
        goal=goal,
        command=_command(path, found),
        program=str(found.get("program", "")),
        parameters=_parameters(path, found.get("parameters")),
        limit=_limit(path, found.get("run_cap")),
        text=text,
        ends_early=bool(found.get("early_terminate")),
    )


class _Loader(yaml.SafeLoader):
    """Refuses a key that is written twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is written twice", node.start_mark)
        return super().construct_mapping(node, deep)


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


def _command(path: Path, found: dict[str, Any]) -> tuple[str, ...]:
    command = found.get("command") or []
    if not isinstance(command, list):
        raise UserError(f"{path}: command={command!r}; write it as a list of words")
    words = tuple(str(word) for word in command)
    macros = [macro for word in words for macro in re.findall(r"\$\{\w+\}", word)]
    if not any(macro in ("${args}", "${args_no_equals}") for macro in macros):
        raise UserError(f"{path}: the command has no ${{args}}, so that no trial would differ; add it at its end")
    if unknown := sorted(set(macros) - set(MACROS)):
        raise UserError(f"{path}: {', '.join(unknown)} in the command is not known here; use {', '.join(MACROS)}")
    if "${program}" in macros and not found.get("program"):
        raise UserError(f"{path}: the command has ${{program}}, but program is not set; set it")
    return words


def _parameters(path: Path, found: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path}: parameters={found!r}; name at least one, as in model.optimizer.lr: {{values: [...]}}")
    for name, description in found.items():
        if not isinstance(description, dict):
            raise UserError(f"{path}: parameters.{name}={description!r}; write {{value: {description!r}}}")
        if "values" in description and not (isinstance(description["values"], list) and description["values"]):
            raise UserError(f"{path}: parameters.{name}.values={description['values']!r}; list one or more")
        if "parameters" in description:
            raise UserError(f"{path}: parameters.{name} is nested; write its path in one, as in {name}.inner: ...")
    return {str(name): description for name, description in found.items()}
