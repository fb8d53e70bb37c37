"""COCO annotations in an ordinary folder: finds the files of its splits, and reads them as a LightningDataModule."""

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vr1.data.annotated import AnnotatedDataModule
from vr1.data.datamodule import MissingSplitError, Source, Split
from vr1.data.splits import FOLDER_SPLITS, SHARES, SPLIT_NAMES, Portion
from vr1.errors import UserError

ROBOFLOW = "_annotations.coco.json"
_NAME = re.compile(rf"(?:instances_)?(?P<part>(?P<split>{'|'.join(SPLIT_NAMES)})\d*)\.json", re.IGNORECASE)
_LOOKED_FOR = f"""\
  train/{ROBOFLOW} with the images in the same folder, likewise valid/ and test/ (Roboflow);
  instances_train.json, instances_valid.json, instances_test.json (or train.json, ...), here or in annotations/, with
  the images in images/, train/ or images/train/;
  annotations/instances_train2017.json with the images in train2017/, likewise val2017 (COCO);
  one single json file, here or in annotations/, with the images in images/ or in its own folder (split by image)"""


class CocoSplit(NamedTuple):
    """The first arguments of an `AnnotatedSource`: ``AnnotatedSource(*split)``."""

    annotations: Path
    images: Path
    portion: Portion | None = None


def coco_splits(root: Path | str, seed: int = 0) -> dict[str, CocoSplit]:
    """Find the annotation files of a data set and their folders of images.

    A folder with one single annotation file that is named after no split is divided by image: 80 % ``train``, 10 %
    ``valid`` and 10 % ``test``, the same images each time for the same ``seed``.

    Args:
        root: the folder of the data set.
        seed: draws the division of a single file.

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
    splits: dict[str, list[CocoSplit]] = {}
    for split, files in [*_roboflow(root), *_named(root)]:
        splits.setdefault(split, []).append(files)
    for split, candidates in splits.items():
        if len(candidates) > 1:
            names = " and ".join(str(candidate.annotations.relative_to(root)) for candidate in candidates)
            raise UserError(f"{root}: {names} are all {split} annotations; keep one of them in this folder")
    if splits:
        return {split: splits[split][0] for split in SHARES if split in splits}
    annotations = _single(root)
    images = _image_folder(root)
    return {split: CocoSplit(annotations, images, Portion(*share, seed)) for split, share in SHARES.items()}


def _roboflow(root: Path) -> list[tuple[str, CocoSplit]]:
    files = [(split, root / name / ROBOFLOW) for name, split in SPLIT_NAMES.items()]
    return [(split, CocoSplit(path, path.parent)) for split, path in files if path.is_file()]


def _named(root: Path) -> list[tuple[str, CocoSplit]]:
    splits = []
    for path in _json_files(root):
        if match := _NAME.fullmatch(path.name):
            images = _image_folder(root, match["part"], match["split"])
            splits.append((SPLIT_NAMES[match["split"].lower()], CocoSplit(path, images)))
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
    raise UserError(f"{root}: cannot tell which file holds the annotations; found {names}. Looked for\n{_LOOKED_FOR}")


def _json_files(root: Path) -> list[Path]:
    return sorted([*root.glob("*.json"), *root.glob("annotations/*.json")])


class CocoDataModule(AnnotatedDataModule):
    """Any folder of images with a COCO json: COCO's own layout, Roboflow's, or one file that is divided by image.

    Args:
        root: the folder; see `coco_splits` for the layouts that are understood.
        report: which split ``test`` and ``predict`` take; ``val`` for COCO, whose test annotations are not public.
        settings: questions, faulty records, selection and loading; see `AnnotatedDataModule` and `RecordDataModule`.
    """

    def __init__(self, root: Path, report: Literal["val", "test"] = "test", **settings: Any) -> None:
        super().__init__(**settings)
        if report not in ("val", "test"):
            raise UserError(f"data.report={report!r} must be val or test")
        self.root, self.report = Path(root), report

    def read(self, split: Split) -> Source:
        """The records of one split; ``predict`` takes those that are tested on.

        Raises:
            MissingSplitError: the folder has no such split.
            UserError: its annotations or images are faulty.
        """
        splits = coco_splits(self.root)
        name = "valid" if split in ("test", "predict") and self.report == "val" else FOLDER_SPLITS[split]
        if name not in splits:
            raise MissingSplitError(
                f"{self.root}: there is no {name} split, only {', '.join(splits)}; add its annotations"
            )
        return self.open(*splits[name])
