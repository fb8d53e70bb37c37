"""Read a run folder: the files that a training writes, and its settings as flat names and values."""

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
from vr1.runs.classes import ClassComparison
from vr1.runs.tables import Comparison

# Settings that say where a run writes, not what it does.
_PATH_SETTINGS = ("default_root_dir", "save_dir", "version", "dirpath", "ckpt_path", "config")


def flat_settings(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by the dotted names of the command line.

    Items of a list are named by their class where they have a ``class_path``, else by their number. ``init_args`` is
    left out of the names.

    Args:
        config: nested mappings and lists, as YAML gives them.
        prefix: name of ``config`` itself.

    Returns:
        Value by name; the value of an object is its ``class_path``.

    Example:
        >>> flat_settings({"model": {"class_path": "my.Model", "init_args": {"lr": 0.1, "sizes": [1, 2]}}})
        {'model': 'my.Model', 'model.lr': 0.1, 'model.sizes': [1, 2]}
    """
    if isinstance(config, Mapping) and "class_path" in config:
        inner = config.get("init_args") or {}
        return {prefix: config["class_path"], **flat_settings(inner, prefix)}
    if isinstance(config, Mapping):
        settings: dict[str, Any] = {}
        for key, value in config.items():
            settings |= flat_settings(value, f"{prefix}.{key}" if prefix else str(key))
        return settings
    if (
        isinstance(config, Sequence)
        and not isinstance(config, str)
        and any(isinstance(item, Mapping) for item in config)
    ):
        settings = {}
        for index, item in enumerate(config):
            name = f"{prefix}.{str(item['class_path']).rsplit('.', 1)[-1] if _is_class(item) else index}"
            # A second object of the same class gets its number as well.
            settings |= flat_settings(item, f"{name}.{index}" if name in settings else name)
        return settings
    return {prefix: config}


def differing(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs.

    Where a run lacks an object, or has one of another class, the object's own row says so; settings that only some of
    the classes have are then left out. So are the folders that a run writes to.

    Args:
        settings: what :func:`flat_settings` returned, for each run.

    Returns:
        The value of each run by name, None where a run lacks the setting.

    Example:
        >>> differing([{"lr": 0.1, "seed": 0}, {"lr": 0.2, "seed": 0}])
        {'lr': [0.1, 0.2]}
        >>> differing([{"loss": "my.GRPO", "loss.kl": 0.1}, {"loss": "my.SFT"}])
        {'loss': ['my.GRPO', 'my.SFT']}
    """
    names = dict.fromkeys(name for run in settings for name in run if name.split(".")[-1] not in _PATH_SETTINGS)
    rows = {name: [run.get(name) for run in settings] for name in names}
    changed = {name: values for name, values in rows.items() if any(value != values[0] for value in values)}
    return {
        name: values
        for name, values in changed.items()
        if all(name in run for run in settings) or not any(parent in changed for parent in _parents(name))
    }


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _is_class(item: Any) -> bool:
    return isinstance(item, Mapping) and "class_path" in item


Points = list[tuple[int, float]]
TILES = "vr1 tiles"
"""The name of a text in a gallery's file: the corners of its tiles in pixels, as JSON."""
_RUN_FILES = ("curves.json", "metrics.csv", "before_after.json")
_VERSION = re.compile(r"version_(\d+)")
_STEP = re.compile(r"step_(\d+)")


@dataclass(frozen=True, kw_only=True)
class Run:
    """The files of one run folder; what the folder lacks is empty.

    Attributes:
        folder: the run folder.
        series: (optimizer step, value) by metric name.
        switches: (optimizer step, name) of each stage that began after the first.
        comparison: the metrics in ``before_after.json``.
        classes: the figures of each class in it.
        config: the resolved configuration, as text.
        facts: ``run.json``: command, seed, versions, git state.
        data: ``data.json``: summary of the data by split.
        galleries: (optimizer step, picture), in order.
    """

    folder: Path
    series: dict[str, Points]
    switches: list[tuple[int, str]]
    comparison: Comparison
    classes: ClassComparison
    config: str
    facts: dict[str, Any]
    data: dict[str, Any]
    galleries: list[tuple[int, Path]]

    @property
    def settings(self) -> Any:
        """The resolved configuration.

        Raises:
            UserError: it is damaged.
        """
        return _settings(self.config, self.folder)


def find_run(folder: Path) -> Path:
    """The run folder at a path: the folder itself, or the newest ``version_N`` in it.

    Raises:
        UserError: there is no run.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; check the path")
    if _is_run(folder):
        return folder
    versions = [(int(match[1]), path) for path in folder.iterdir() if (match := _VERSION.fullmatch(path.name))]
    for _, path in sorted(versions, reverse=True):
        if _is_run(path):
            return path
    raise UserError(
        f"{folder}: no run in it (neither {', '.join(_RUN_FILES[:-1])} nor {_RUN_FILES[-1]}); give the folder of a"
        " training, such as runs/demo/version_0"
    )


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Args:
        folder: a run folder, or a folder with ``version_N`` in it, of which the newest is read.

    Raises:
        UserError: there is no run, or one of its files is damaged.
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
                f"{folder / 'curves.json'}: contains no curves ({error!r}); remove it to continue without"
            ) from None
        # What curves.json leaves out (thresholds, the user's own metrics) is in the log, since the last resume.
        series = _logged(folder / "metrics.csv") | series
    else:
        series = _logged(folder / "metrics.csv")
        switches = _switches(series.get("rule/stage", []), _settings(text, folder))
    pictures = sorted((folder / "gallery").glob("step_*.png"))
    comparison, classes = _compared(folder / "before_after.json")
    return Run(
        folder=folder,
        series={name: points for name, points in series.items() if name not in ("epoch", "step")},
        switches=switches,
        comparison=comparison,
        classes=classes,
        config=text,
        facts=_json(folder / "run.json"),
        data=_json(folder / "data.json"),
        galleries=[(int(match[1]), path) for path in pictures if (match := _STEP.fullmatch(path.stem))],
    )


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _RUN_FILES)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); remove it to continue without") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: contains no JSON object; remove it to continue without")
    return content


def _compared(path: Path) -> tuple[Comparison, ClassComparison]:
    content = _json(path)
    try:
        return Comparison.from_dict(content), ClassComparison.from_dict(content.get("classes") or {})
    except (AttributeError, TypeError) as error:
        raise UserError(f"{path}: contains no comparison ({error}); remove it to continue without") from None


def _logged(path: Path) -> dict[str, Points]:
    """The metrics of a CSVLogger's file, without incomplete lines and values that are not finite numbers."""
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
        reason = " ".join(str(error).split())
        raise UserError(f"{folder / 'config.yaml'}: not YAML ({reason}); remove it to continue without") from None


def _switches(stages: Points, settings: Any) -> list[tuple[int, str]]:
    """(step, name) of each stage that began after the first, from the logged numbers of the stages."""
    names = _stage_names(settings)
    switches = []
    for (_, before), (step, stage) in pairwise(stages):
        if stage != before:
            index = int(stage)
            switches.append((step, names[index] if index < len(names) else f"stage {index}"))
    return switches


def _stage_names(settings: Any) -> list[str]:
    """Names of the stages in a configuration; the paper's stages where it lists none."""
    callbacks = (settings.get("trainer") or {}).get("callbacks") if isinstance(settings, dict) else None
    for callback in callbacks if isinstance(callbacks, list) else []:
        if isinstance(callback, dict) and str(callback.get("class_path")).endswith("RuleRefinement"):
            stages = (callback.get("init_args") or {}).get("stages")
            return [str(stage["name"]) for stage in stages] if stages else ["beginner", "advanced"]
    return []
