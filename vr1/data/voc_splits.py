"""Finds the xml files of each split in a folder of Pascal VOC annotations."""

from pathlib import Path
from typing import NamedTuple

from vr1.data.coco_splits import SHARES, Portion

_SPLITS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
_LOOKED_FOR = """\
  Annotations/*.xml with the images in JPEGImages/ and lists ImageSets/Main/train.txt, val.txt, test.txt (VOC);
  train/*.xml with the images beside them, likewise valid/ and test/ (Roboflow);
  annotations/*.xml with the images in images/, or xml files beside their images (split by image)"""


class VocSplit(NamedTuple):
    """The xml files of one split, and the folder of their images."""

    files: list[Path]
    images: Path


def voc_splits(root: Path) -> dict[str, VocSplit]:
    """The splits of a folder: those it has, or 80 % ``train``, 10 % ``valid`` and 10 % ``test`` of its images.

    Args:
        root: the folder of the data set.

    Returns:
        What was found, by ``train``, ``valid`` and ``test``.

    Raises:
        ValueError: if there is no such folder, or no xml file in it.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder of a data set; check the path")
    lists = root / "ImageSets" / "Main"
    if lists.is_dir() and (root / "Annotations").is_dir():
        found = {}
        for name, split in _SPLITS.items():
            if (file := lists / f"{name}.txt").is_file():
                # A list of one category has a second column: 1 where the image shows it.
                names = [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
                files = [root / "Annotations" / f"{name}.xml" for name in dict.fromkeys(names)]
                found[split] = VocSplit(files, root / "JPEGImages")
        if found:
            return found
    folders = {split: root / name for name, split in _SPLITS.items() if any((root / name).glob("*.xml"))}
    if folders:
        return {split: VocSplit(sorted(folder.glob("*.xml")), folder) for split, folder in folders.items()}
    for annotations, images in (("Annotations", "JPEGImages"), ("annotations", "images"), ("", "")):
        if files := sorted((root / annotations).glob("*.xml")):
            return _divide(files, root / images)
    raise ValueError(f"{root}: no xml file is where one could be. Looked for\n{_LOOKED_FOR}")


def _divide(files: list[Path], images: Path) -> dict[str, VocSplit]:
    chosen = {split: Portion(*share).of(file.stem for file in files) for split, share in SHARES.items()}
    return {split: VocSplit([file for file in files if file.stem in names], images) for split, names in chosen.items()}
