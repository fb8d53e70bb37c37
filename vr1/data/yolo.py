"""YOLO labels, for each image a txt file of lines ``class x y w h`` in shares of the image: reader and data module."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from vr1.data.annotated import AnnotatedDataModule
from vr1.data.annotations import AnnotationTable, TableBuilder, box_fault
from vr1.data.datamodule import MissingSplitError, Source, Split
from vr1.data.images import SUFFIXES, ImageError, image_size
from vr1.data.splits import FOLDER_SPLITS
from vr1.data.validation import Problems
from vr1.errors import UserError


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


def yolo_splits(root: Path) -> tuple[dict[int, str], dict[str, Path]]:
    """The names and the folders (or lists) of images of a data set with a ``data.yaml``.

    Args:
        root: the folder, or the yaml file itself.

    Returns:
        Names by class number, and the images' folder (or list) of some of ``train``, ``valid`` and ``test``.

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
    base = path.parent / str(document.get("path", ""))
    base = base if base.is_dir() else path.parent
    splits = {}
    for key, split in (("train", "train"), ("val", "valid"), ("valid", "valid"), ("test", "test")):
        value = document.get(key)
        if isinstance(value, list):
            raise UserError(f"{path}: {key} is a list; name one folder of images, or one txt file that lists them")
        if isinstance(value, str):
            # Roboflow writes ../train/images where train/images is meant.
            places = [base / value, base / value.removeprefix("../")]
            if place := next((place for place in places if place.exists()), None):
                splits[split] = place
    if not splits:
        raise UserError(f"{path}: names no existing folder of images (train, val, test); fix its paths")
    return names, splits


def read_yolo(path: Path, names: dict[int, str]) -> tuple[AnnotationTable, Problems, list[str]]:
    """Read the labels of one split.

    The size of every image is read from its header, since the labels are shares of it. A line with more than four
    numbers is a polygon, and its bounds are taken. An image without a label file has no objects.

    Args:
        path: the folder of the images, or a txt file that lists them; labels are in the folder of the same name with
            ``labels`` for ``images``, or next to the images.
        names: category names by class number.

    Returns:
        The table of the valid images, the problems of the others, and notes on what was changed. File names are
        relative to the folder of ``path``, or absolute where a list gives them so.

    Raises:
        UserError: if there is no image.
    """
    problems, builder, polygons = Problems(str(path)), TableBuilder(), 0
    for number in sorted(names):
        builder.add_category(names[number])
    folder = path if path.is_dir() else path.parent
    images = _images(path)
    if not images:
        raise UserError(f"images={path}: has no image; give the folder of the images, or a list of them")
    for image in images:
        try:
            size = image_size(image)
        except ImageError as error:
            problems.add("image file unreadable", str(error))
            continue
        objects, faults, more = _labels(label_file(image), names, size)
        polygons += more
        for fault, where in faults:
            problems.add(fault, where)
        # Without its faulty objects an image would teach that there is nothing to find.
        if objects or not faults:
            builder.add_image(os.path.relpath(image, folder), size)
            for name, box in objects:
                builder.add_object(name, box)
    notes = [f"{polygons} lines are polygons; their bounds are taken"] if polygons else []
    return builder.table(), problems, builder.notes() + notes


def label_file(image: Path) -> Path:
    """The label file of an image.

    Example:
        >>> label_file(Path("set/train/images/a.b.jpg")).as_posix()
        'set/train/labels/a.b.txt'
    """
    parts = list(image.parts)
    places = [number for number, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _images(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    lines = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else []
    return [path.parent / line.strip() for line in lines if line.strip()]


def _labels(
    path: Path, names: dict[int, str], size: tuple[int, int]
) -> tuple[list[tuple[str, tuple[float, ...]]], list[tuple[str, str]], int]:
    """Objects, faults with their place, and number of polygons of one label file."""
    objects: list[tuple[str, tuple[float, ...]]] = []
    faults: list[tuple[str, str]] = []
    polygons = 0
    try:
        text = path.read_text(encoding="utf-8-sig") if path.is_file() else ""
    except UnicodeDecodeError as error:
        return [], [("label file that is not text", f"{path}: {error}")], 0
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}: {line.strip()[:80]}"
        try:
            values = [float(text) for text in line.split()]
        except ValueError:
            faults.append(("line that is not numbers", where))
            continue
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            faults.append(("line that is neither class x y w h nor class and corners", where))
        elif values[0] not in names:
            faults.append(("class number without a name", where))
        else:
            polygons += len(values) > 5
            box = _bounds(values[1:], size)
            if fault := box_fault(box, size):
                faults.append((fault, where))
            else:
                objects.append((names[int(values[0])], box))
    return objects, faults, polygons


def _bounds(values: list[float], size: tuple[int, int]) -> tuple[float, ...]:
    """Corners in pixels of a centre and size, or of the corners of a polygon, in shares of the image."""
    width, height = size
    if len(values) == 4:
        x, y, w, h = values
        return (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
    across, down = values[::2], values[1::2]
    return min(across) * width, min(down) * height, max(across) * width, max(down) * height


class YoloDataModule(AnnotatedDataModule):
    """Images with YOLO txt labels and a ``data.yaml`` that names the categories and the splits.

    Args:
        root: the folder with the yaml file, or the file itself.
        settings: questions, faulty records, selection and loading; see `AnnotatedDataModule` and `RecordDataModule`.
    """

    def __init__(self, root: Path, **settings: Any) -> None:
        super().__init__(**settings)
        self.root = Path(root)

    def read(self, split: Split) -> Source:
        """The records of one split; ``predict`` takes the test records.

        Raises:
            MissingSplitError: the yaml file names no such split, or one whose images are missing.
            UserError: its labels or images are faulty.
        """
        names, places = yolo_splits(self.root)
        if (name := FOLDER_SPLITS[split]) not in places:
            raise MissingSplitError(
                f"{self.root}: there is no {name} split, only {', '.join(places)}; name its folder in the yaml"
                " file, and put its images there"
            )
        place = places[name]
        return self.open(place, place if place.is_dir() else place.parent, read=partial(read_yolo, names=names))
