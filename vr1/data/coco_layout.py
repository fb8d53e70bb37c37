"""Finds the annotation files of a COCO data set and the folders of their images, in the layouts that tools write."""

import json
import mmap
import re
from pathlib import Path
from typing import NamedTuple

from vr1.data.image_files import choose_folder
from vr1.data.splits import SHARES, SPLIT_NAMES, Portion
from vr1.errors import UserError

ROBOFLOW = "_annotations.coco.json"
_ANNOTATION_FOLDERS = ("", "annotations", "Annotations")
_IMAGE_FOLDERS = ("images", "images/default", "data", "Images", "JPEGImages", "img", "imgs")
_SPLIT = re.compile(rf"(?P<split>{'|'.join(SPLIT_NAMES)})\d*", re.IGNORECASE)
# What tools add to the name of a split.
_AROUND = re.compile(r"instances?|labels?|annotations?|coco(?:format)?|usersplit|[\W_]+", re.IGNORECASE)
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_SCANNED = 2**24
"""Bytes of an annotation file in which names of images are looked for, to find their folder."""
_MOST_FILES = 20
_LOOKED_FOR = f"""\
  train/{ROBOFLOW} with the images in the same folder, likewise valid/ and test/ (Roboflow);
  instances_train.json, instances_valid.json, instances_test.json (or train.json, train_labels.json, ...), here or in
  annotations/, with the images in images/, train/ or images/train/;
  annotations/instances_train2017.json with the images in train2017/, likewise val2017 (COCO);
  train/labels.json with the images in train/data/, likewise for others (FiftyOne);
  one single json file, here or in annotations/, with the images in images/ (Label Studio), images/default/ (CVAT),
  data/ (FiftyOne) or its own folder (split by image)"""


class CocoSplit(NamedTuple):
    """The first arguments of an `AnnotatedSource`: ``AnnotatedSource(*split)``."""

    annotations: Path
    images: Path
    portion: Portion | None = None


def coco_splits(root: Path | str, seed: int = 0, images: Path | str | None = None) -> dict[str, CocoSplit]:
    """Find the annotation files of a data set and their folders of images.

    A folder with one single annotation file that is named after no split is divided by image: 80 % ``train``, 10 %
    ``valid`` and 10 % ``test``, the same images each time for the same ``seed``. Of the folders that may hold the
    images, that one is taken in which most of the listed names exist.

    Args:
        root: the folder of the data set.
        seed: draws the division of a single file.
        images: the folder of the images, relative to ``root``, where it is another one.

    Returns:
        The files by split: some of ``train``, ``valid`` and ``test``, in this order.

    Raises:
        UserError: if there is no such folder, nothing in it is recognised, or two files claim the same split.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("annotations", "train2017", "val2017"):
        ...         Path(root, name).mkdir()
        ...     for name in ("train2017", "val2017"):
        ...         Path(root, "annotations", f"instances_{name}.json").touch()
        ...     {name: (split.annotations.name, split.images.name) for name, split in coco_splits(root).items()}
        {'train': ('instances_train2017.json', 'train2017'), 'valid': ('instances_val2017.json', 'val2017')}
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of a data set; check the path")
    given = None if images is None else root / images
    splits: dict[str, list[CocoSplit]] = {}
    for split, files in [*_in_split_folders(root, given), *_named(root, given)]:
        splits.setdefault(split, []).append(files)
    for split, candidates in splits.items():
        if len(candidates) > 1:
            names = " and ".join(str(candidate.annotations.relative_to(root)) for candidate in candidates)
            raise UserError(f"{root}: {names} are all {split} annotations; keep one of them in this folder")
    if splits:
        return {split: splits[split][0] for split in SHARES if split in splits}
    annotations = _single(root)
    folder = given or _image_folder(annotations, root)
    return {split: CocoSplit(annotations, folder, Portion(*share, seed)) for split, share in SHARES.items()}


def listed_names(annotations: Path) -> list[str]:
    """The ``file_name`` of images near the start of a json file, without reading all of it."""
    if not annotations.stat().st_size:
        return []
    with annotations.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = [match[1] for match in _FILE_NAME.finditer(content, 0, min(len(content), _SCANNED))]
    names = []
    for text in found:
        try:
            names.append(json.loads(text))
        except ValueError:
            continue
    return names


def _in_split_folders(root: Path, given: Path | None) -> list[tuple[str, CocoSplit]]:
    """Folders named after a split with one json file each: Roboflow's, FiftyOne's and others."""
    splits = []
    for name, split in SPLIT_NAMES.items():
        folder = root / name
        files = [path for place in _ANNOTATION_FOLDERS for path in sorted((folder / place).glob("*.json"))]
        own = [path for path in files if path.name == ROBOFLOW] or _annotation_files(files)
        if len(own) == 1:
            places = [own[0].parent, folder, *(folder / name for name in _IMAGE_FOLDERS), root / "images" / name, root]
            splits.append((split, CocoSplit(own[0], given or choose_folder(places, listed_names(own[0]), root))))
    return splits


def _annotation_files(paths: list[Path]) -> list[Path]:
    """Those that list images; other tools keep settings, results or one file an image beside them."""
    return [path for path in paths if listed_names(path)] if len(paths) <= _MOST_FILES else []


def _named(root: Path, given: Path | None) -> list[tuple[str, CocoSplit]]:
    splits = []
    for path in _json_files(root):
        part = _AROUND.sub("", path.stem)
        plain = path.stem.lower().removeprefix("instances_") == part.lower()
        if (match := _SPLIT.fullmatch(part)) and (plain or listed_names(path)):
            images = given or _image_folder(path, root, part, match["split"])
            splits.append((SPLIT_NAMES[match["split"].lower()], CocoSplit(path, images)))
    return splits


def _image_folder(annotations: Path, root: Path, *names: str) -> Path:
    folders = [folder / name for name in names for folder in (root, root / "images")]
    folders += [root / name for name in _IMAGE_FOLDERS]
    places = [*(place for place in folders if place.is_dir()), root, annotations.parent, annotations.parent / "images"]
    return choose_folder(places, listed_names(annotations), root)


def _single(root: Path) -> Path:
    paths = _json_files(root)
    likely = [path for path in paths if path.name == ROBOFLOW or path.name.startswith("instances")]
    candidates = likely or paths
    if len(candidates) > 1:
        candidates = _annotation_files(candidates) or candidates
    if len(candidates) == 1:
        return candidates[0]
    names = ", ".join(str(path.relative_to(root)) for path in candidates[:5]) or "no json file"
    raise UserError(f"{root}: it is unclear which file has the annotations; found {names}. Looked for\n{_LOOKED_FOR}")


def _json_files(root: Path) -> list[Path]:
    folders = {path.resolve(): path for place in _ANNOTATION_FOLDERS if (path := root / place).is_dir()}
    return sorted(path for folder in folders.values() for path in folder.glob("*.json"))
