"""The settings of runs as flat names and values."""

from collections.abc import Mapping, Sequence
from typing import Any

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
