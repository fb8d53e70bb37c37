"""Reads the ``data.yaml`` of a YOLO data set: the names of its classes, its splits, the shape of its keypoints."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vr1.data.splits import SPLIT_NAMES
from vr1.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class YoloSet:
    """What a ``data.yaml`` says.

    Attributes:
        names: category names by class number.
        splits: the images' folder (or list) of some of ``train``, ``valid`` and ``test``.
        keypoints: number of values that follow the box of each object, of poses; 0 where there are none.
        notes: by split, what a reader of the data should know.
    """

    names: dict[int, str]
    splits: dict[str, Path]
    keypoints: int
    notes: dict[str, str]


def read_data_yaml(root: Path) -> YoloSet:
    """Read the ``data.yaml`` of a data set.

    A path that does not exist, as that of another machine, is looked for beside the file by its last parts.

    Args:
        root: the folder, or the yaml file itself.

    Raises:
        UserError: if there is no yaml file, it is faulty, or it names no existing images.
    """
    path = root
    if not root.is_file():
        files = [file for file in sorted(root.glob("*")) if file.suffix in (".yaml", ".yml")]
        path = next((file for file in files if file.stem == "data"), files[0] if files else root)
    if not path.is_file():
        raise UserError(f"{root}: has no yaml file; YOLO data need a data.yaml with names and splits")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())}); fix the file") from error
    names = yolo_names(document, path)
    splits, notes = _splits(document, path)
    if not splits:
        raise UserError(f"{path}: names no existing folder of images (train, val, test); fix its paths")
    return YoloSet(names=names, splits=splits, keypoints=_keypoints(document, path), notes=notes)


def yolo_names(document: Any, path: Path) -> dict[int, str]:
    """Category names by class number, from the ``names`` of a ``data.yaml``.

    Raises:
        UserError: if there is no usable list or mapping of names, or one of them is no text.
    """
    names = document.get("names") if isinstance(document, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise UserError(f"{path}: has no 'names'; give the category names as a list, or by class number")
    for number, name in names.items():
        if name is None or isinstance(name, bool) or not str(name).strip():
            raise UserError(
                f"{path}: the name of class {number} is {name!r}; give a text, in quotes where it is a value like no or"
                " null, which YAML reads as something else"
            )
    try:
        return {int(number): str(name) for number, name in names.items()}
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: 'names' has a key that is no class number ({error}); fix the mapping") from error


def _keypoints(document: dict[str, Any], path: Path) -> int:
    """Number of values of the keypoints of an object."""
    shape = document.get("kpt_shape")
    if shape is None:
        return 0
    whole = isinstance(shape, list) and all(isinstance(side, int) and not isinstance(side, bool) for side in shape)
    if not whole or len(shape) != 2 or shape[0] < 1 or shape[1] not in (2, 3):
        raise UserError(f"{path}: kpt_shape={shape!r}; give [number of keypoints, 2 or 3], or leave it out")
    return shape[0] * shape[1]


def _splits(document: dict[str, Any], path: Path) -> tuple[dict[str, Path], dict[str, str]]:
    base = path.parent / str(document.get("path") or "").replace("\\", "/")
    bases = [base, path.parent] if base.is_dir() else [path.parent]
    splits: dict[str, Path] = {}
    notes: dict[str, str] = {}
    for key in ("train", "val", "valid", "validation", "test"):
        split, value = SPLIT_NAMES[key], document.get(key)
        if isinstance(value, list):
            raise UserError(f"{path}: {key} is a list; name one folder of images, or one txt file that lists them")
        if not isinstance(value, str) or split in splits:
            continue
        found = find_place(value, bases)
        if found is None:
            continue
        splits[split] = found
        if not any((base / value).exists() for base in bases):
            notes[split] = f"{path}: {key}={value} does not exist; {found} beside the file is read"
    for split in notes:
        if same := [other for other, place in splits.items() if place == splits[split] and other != split]:
            raise UserError(
                f"{path}: the paths of {split} and {same[0]} do not exist, and beside the file both lead to"
                f" {splits[split]}; fix them"
            )
    return splits, notes


def find_place(value: str, bases: list[Path]) -> Path | None:
    """A path as it is, or where it does not exist, by its last parts in one of the folders.

    Args:
        value: a path relative to the first folder, or of another machine.
        bases: the folders.
    """
    # Roboflow writes ../train/images where train/images is meant.
    texts = dict.fromkeys([value, value.removeprefix("../"), value.replace("\\", "/")])
    for base in bases:
        for text in texts:
            if (base / text).exists():
                return base / text
    parts = [part for part in re.split(r"[/\\]", value) if part not in ("", ".", "..")]
    for start in range(1, len(parts)):
        for base in bases:
            if (place := base.joinpath(*parts[start:])).exists():
                return place
    return None
