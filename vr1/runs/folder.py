"""A run folder, read again: the files that a training has written, and its settings as flat names and values."""

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from vr1.errors import UserError
from vr1.runs.tables import Comparison

# Where a run writes says nothing of what it does.
_PLACES = ("default_root_dir", "save_dir", "version", "dirpath", "ckpt_path", "config")


def flat_settings(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their path.

    Items of a list are numbered, or named by their class where they have a ``class_path``; ``init_args`` are left out
    of the path, as on the command line.

    Example:
        >>> flat_settings({"model": {"class_path": "my.Model", "init_args": {"lr": 0.1, "sizes": [1, 2]}}})
        {'model': 'my.Model', 'model.lr': 0.1, 'model.sizes': [1, 2]}
    """
    if isinstance(config, Mapping) and "class_path" in config:
        inner = config.get("init_args") or {}
        return {prefix: config["class_path"], **flat_settings(inner, prefix)}
    if isinstance(config, Mapping):
        found: dict[str, Any] = {}
        for key, value in config.items():
            found |= flat_settings(value, f"{prefix}.{key}" if prefix else str(key))
        return found
    if (
        isinstance(config, Sequence)
        and not isinstance(config, str)
        and any(isinstance(item, Mapping) for item in config)
    ):
        found = {}
        for index, item in enumerate(config):
            name = str(item["class_path"]).rsplit(".", 1)[-1] if _is_class(item) else str(index)
            place = f"{prefix}.{name}"
            # Two objects of one class must not hide one another.
            found |= flat_settings(item, f"{place}.{index}" if place in found else place)
        return found
    return {prefix: config}


def differing(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs: the value of each run by name, None where a run has none.

    Example:
        >>> differing([{"lr": 0.1, "seed": 0}, {"lr": 0.2, "seed": 0}])
        {'lr': [0.1, 0.2]}
    """
    names = dict.fromkeys(name for one in settings for name in one)
    rows = {name: [one.get(name) for one in settings] for name in names if name.split(".")[-1] not in _PLACES}
    return {name: values for name, values in rows.items() if any(value != values[0] for value in values)}


def _is_class(item: Any) -> bool:
    return isinstance(item, Mapping) and "class_path" in item


Points = list[tuple[int, float]]
_SIGNS = ("curves.json", "metrics.csv", "before_after.json")
_VERSION = re.compile(r"version_(\d+)")
_STEP = re.compile(r"step_(\d+)")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of one run; all that a folder lacks is empty.

    Attributes:
        folder: where it lies.
        series: (optimizer step, value) by metric name.
        switches: (optimizer step, name) of each stage that began after the first.
        compared: ``before_after.json``, read again.
        config: the resolved configuration, as text.
        facts: ``run.json``: command, seed, versions, git state.
        data: ``data.json``: summary of the data by split.
        galleries: (optimizer step, picture), in order.
    """

    folder: Path
    series: dict[str, Points]
    switches: list[tuple[int, str]]
    compared: Comparison
    config: str
    facts: dict[str, Any]
    data: dict[str, Any]
    galleries: list[tuple[int, Path]]

    @property
    def settings(self) -> Any:
        """The resolved configuration.

        Raises:
            UserError: if it is damaged.
        """
        return _settings(self.config, self.folder)


def find_run(folder: Path) -> Path:
    """The run folder that is meant by a path: itself, or the newest ``version_N`` in it.

    Raises:
        UserError: if there is no run.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; check the path")
    if _is_run(folder):
        return folder
    versions = [(int(found[1]), path) for path in folder.iterdir() if (found := _VERSION.fullmatch(path.name))]
    for _, path in sorted(versions, reverse=True):
        if _is_run(path):
            return path
    raise UserError(
        f"{folder}: no run in it (neither {', '.join(_SIGNS[:-1])} nor {_SIGNS[-1]}); give the folder that a training"
        " has written, such as runs/demo/version_0"
    )


def read_run(folder: Path) -> Run:
    """Read what a training has written.

    Args:
        folder: a run folder, or one with ``version_N`` in it.

    Raises:
        UserError: if there is no run, or one of its files is damaged.
    """
    folder = find_run(folder)
    config = folder / "config.yaml"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    curves = _json(folder / "curves.json")
    if curves:
        try:
            series = {name: _finite(points) for name, points in curves["series"].items()}
            switches = [(int(step), str(name)) for step, name in curves["switches"]]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{folder / 'curves.json'}: holds no curves ({error!r}); remove it to go on without"
            ) from None
        # Of what Curves leaves out (thresholds, the user's own) the log has at least the part since the last resume.
        series = _logged(folder / "metrics.csv") | series
    else:
        series = _logged(folder / "metrics.csv")
        switches = _switches(series.get("rule/stage", []), _settings(text, folder))
    pictures = sorted((folder / "gallery").glob("step_*.png"))
    return Run(
        folder=folder,
        series={name: points for name, points in series.items() if name not in ("epoch", "step")},
        switches=switches,
        compared=_compared(folder / "before_after.json"),
        config=text,
        facts=_json(folder / "run.json"),
        data=_json(folder / "data.json"),
        galleries=[(int(found[1]), path) for path in pictures if (found := _STEP.fullmatch(path.stem))],
    )


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _SIGNS)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); remove it to go on without") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no JSON object; remove it to go on without")
    return found


def _compared(path: Path) -> Comparison:
    try:
        return Comparison.from_dict(_json(path))
    except TypeError as error:
        raise UserError(f"{path}: holds no comparison ({error}); remove it to go on without") from None


def _logged(path: Path) -> dict[str, Points]:
    """The metrics of a CSVLogger's file; a line that was cut short, or a value that is no number, is left out."""
    series: dict[str, Points] = {}
    if not path.is_file():
        return series
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            step = _number(row.pop("step", None))
            for name, text in row.items() if step is not None else ():
                value = _number(text) if isinstance(name, str) else None
                if value is not None:
                    assert step is not None
                    series.setdefault(name, []).append((int(step), value))
    return series


def _finite(points: list[list[float]]) -> Points:
    return [(int(step), float(value)) for step, value in points if math.isfinite(value)]


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _settings(config: str, folder: Path) -> Any:
    try:
        return yaml.safe_load(config) or {}
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise UserError(f"{folder / 'config.yaml'}: no YAML ({said}); remove it to go on without") from None


def _switches(stages: Points, settings: Any) -> list[tuple[int, str]]:
    names = _stage_names(settings)
    found = []
    for (_, before), (step, stage) in pairwise(stages):
        if stage != before:
            index = int(stage)
            found.append((step, names[index] if index < len(names) else f"stage {index}"))
    return found


def _stage_names(settings: Any) -> list[str]:
    """Names of the stages in a configuration; those of the paper where it names none."""
    callbacks = (settings.get("trainer") or {}).get("callbacks") if isinstance(settings, dict) else None
    for callback in callbacks if isinstance(callbacks, list) else []:
        if isinstance(callback, dict) and str(callback.get("class_path")).endswith("RuleRefinement"):
            stages = (callback.get("init_args") or {}).get("stages")
            return [str(stage["name"]) for stage in stages] if stages else ["beginner", "advanced"]
    return []
