"""Finds the training, validation and test annotations in an ordinary folder."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from vr1.errors import UserError

ROBOFLOW = "_annotations.coco.json"
SHARES = {"train": (0.0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1.0)}
FOLDER_SPLITS = {"train": "train", "val": "valid", "test": "test", "predict": "test"}
"""What folders call the split that a data module reads for each of its own."""

_SPLITS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
_NAME = re.compile(rf"(?:instances_)?(?P<part>(?P<split>{'|'.join(_SPLITS)})\d*)\.json", re.IGNORECASE)
_LOOKED_FOR = f"""\
  train/{ROBOFLOW} with the images beside it, likewise valid/ and test/ (Roboflow);
  instances_train.json, instances_valid.json, instances_test.json (or train.json, ...), here or in annotations/, with
  the images in images/, train/ or images/train/;
  annotations/instances_train2017.json with the images in train2017/, likewise val2017 (COCO);
  one single json file, here or in annotations/, with the images in images/ or beside it (split by image)"""


class Portion(NamedTuple):
    """A part of the images of one file: shares ``start`` to ``stop`` (0..1) in an order drawn by ``seed``."""

    start: float
    stop: float
    seed: int = 0

    def of(self, names: Iterable[str]) -> set[str]:
        """The names of the images in this part.

        They are ordered by a hash of each, so that parts of one seed never share an image, whatever the order and
        number of the others' names.

        Example:
            >>> sorted(Portion(0.0, 0.5).of("abcd") | Portion(0.5, 1.0).of("dcba"))
            ['a', 'b', 'c', 'd']
        """
        order = sorted(names, key=lambda name: hashlib.sha256(f"{self.seed}:{name}".encode()).digest())
        return set(order[round(self.start * len(order)) : round(self.stop * len(order))])


class CocoSplit(NamedTuple):
    """The first arguments of a `CocoSource`: ``CocoSource(*split)``."""

    annotations: Path
    images: Path
    portion: Portion | None = None


def split_files(root: Path | str, seed: int = 0) -> dict[str, CocoSplit]:
    """Find the annotation files of a data set and their folders of images.

    A folder with one single annotation file that is named after no split is divided by image: 80 % ``train``, 10 %
    ``valid`` and 10 % ``test``, the same images each time for the same ``seed``.

    Args:
        root: the folder of the data set.
        seed: draws the division of a single file.

    Returns:
        What was found, by split: some of ``train``, ``valid`` and ``test``, in this order.

    Raises:
        UserError: if there is no such folder, nothing in it is recognised, or two files claim the same split.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("annotations", "train2017", "val2017"):
        ...         Path(root, name).mkdir()
        ...     for name in ("train2017", "val2017"):
        ...         Path(root, "annotations", f"instances_{name}.json").touch()
        ...     {name: (split.annotations.name, split.images.name) for name, split in split_files(root).items()}
        {'train': ('instances_train2017.json', 'train2017'), 'valid': ('instances_val2017.json', 'val2017')}
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of a data set; check the path")
    found: dict[str, list[CocoSplit]] = {}
    for split, files in [*_roboflow(root), *_named(root)]:
        found.setdefault(split, []).append(files)
    for split, claims in found.items():
        if len(claims) > 1:
            names = " and ".join(str(claim.annotations.relative_to(root)) for claim in claims)
            raise UserError(f"{root}: {names} are all {split} annotations; keep one of them in this folder")
    if found:
        return {split: found[split][0] for split in SHARES if split in found}
    annotations = _single(root)
    images = _image_folder(root)
    return {split: CocoSplit(annotations, images, Portion(*share, seed)) for split, share in SHARES.items()}


def _roboflow(root: Path) -> list[tuple[str, CocoSplit]]:
    files = [(split, root / name / ROBOFLOW) for name, split in _SPLITS.items()]
    return [(split, CocoSplit(path, path.parent)) for split, path in files if path.is_file()]


def _named(root: Path) -> list[tuple[str, CocoSplit]]:
    splits = []
    for path in _json_files(root):
        if match := _NAME.fullmatch(path.name):
            images = _image_folder(root, match["part"], match["split"])
            splits.append((_SPLITS[match["split"].lower()], CocoSplit(path, images)))
    return splits


def _image_folder(root: Path, *names: str) -> Path:
    folders = [folder / name for name in names for folder in (root, root / "images")]
    candidates = [*folders, root / "images"]
    return next((folder for folder in candidates if folder.is_dir()), root)


def _single(root: Path) -> Path:
    paths = _json_files(root)
    likely = [path for path in paths if path.name == ROBOFLOW or path.name.startswith("instances")]
    candidates = likely or paths
    if len(candidates) == 1:
        return candidates[0]
    names = ", ".join(str(path.relative_to(root)) for path in candidates[:5]) or "no json file"
    raise UserError(f"{root}: cannot tell the annotations; found {names}. Looked for\n{_LOOKED_FOR}")


def _json_files(root: Path) -> list[Path]:
    return sorted([*root.glob("*.json"), *root.glob("annotations/*.json")])
