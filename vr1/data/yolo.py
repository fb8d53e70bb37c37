"""YOLO labels, for each image a txt file of lines ``class x y w h`` in shares of the image: reader and data module."""

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vr1.data.annotated import AnnotatedDataModule, Reader
from vr1.data.annotations import AnnotationTable, TableBuilder, box_fault
from vr1.data.datamodule import MissingSplitError, Source, Split
from vr1.data.images import ImageError, count_unread, image_size, is_image_name
from vr1.data.splits import FOLDER_SPLITS
from vr1.data.validation import LostObjects, Problems
from vr1.data.yolo_layout import YoloSet, find_place, read_data_yaml
from vr1.errors import UserError

NOT_SHARES = "line with a coordinate outside 0..1, which is no share of the image"
# Exporters round; Ultralytics' own reader allows as much.
_ROUNDING = 0.01
# Lines that show poses: a polygon or two look like one by chance.
_FEWEST = 4


def yolo_splits(root: Path) -> tuple[dict[int, str], dict[str, Path]]:
    """The names and the folders (or lists) of images of a data set with a ``data.yaml``.

    Args:
        root: the folder, or the yaml file itself.

    Returns:
        Names by class number, and the images' folder (or list) of some of ``train``, ``valid`` and ``test``.

    Raises:
        UserError: if there is no yaml file, it is faulty, or it names no existing images.
    """
    content = read_data_yaml(root)
    return content.names, content.splits


def read_yolo(
    path: Path, names: dict[int, str], keypoints: int = 0, notes: Sequence[str] = ()
) -> tuple[AnnotationTable, Problems, list[str]]:
    """Read the labels of one split.

    The size of every image is read from its header, since the labels are shares of it. A line with more than four
    numbers is a box with its keypoints where the data set has any, else a polygon, whose bounds are taken. An image
    without a label file has no objects.

    Args:
        path: the folder of the images, or a txt file that lists them; labels are in the folder of the same name with
            ``labels`` for ``images``, or next to the images.
        names: category names by class number.
        keypoints: number of values that follow the box of each object, of poses; see `YoloSet`.
        notes: what else a reader of the data should know.

    Returns:
        The table of the valid images, the problems of the others, and notes on what was changed. File names are
        relative to the folder of ``path``, or absolute where a list gives them so.

    Raises:
        UserError: if there is no image, or poses are not declared.
    """
    problems, builder, lost = Problems(str(path)), TableBuilder(), LostObjects()
    for number in sorted(names):
        builder.add_category(names[number])
    folder = path if path.is_dir() else path.parent
    images, image_notes = _images(path)
    if not images:
        raise UserError(f"images={path}: has no image; give the folder of the images, or a list of them")
    label_files = Counter(map(label_file, images))
    polygons: list[list[float]] = []
    for image in images:
        name, label_path = os.path.relpath(image, folder), label_file(image)
        size = _size(image, name, problems)
        if size is None:
            continue
        if label_files[label_path] > 1 and label_path.is_file():
            problems.add("label file of several images", f"{label_path}: {name} and another", name)
            continue
        objects, faults, more = _labels(label_path, names, size, keypoints)
        polygons += more
        for fault, where in faults:
            problems.add(fault, where, name)
        if faults:
            lost.add(name, len(objects))
            continue
        builder.add_image(name, size)
        for label, box in objects:
            builder.add_object(label, box)
    _report_labels_without_image(path, set(label_files), problems)
    if _are_poses(polygons):
        raise UserError(
            f"images={path}: every line of {1 + len(polygons[0])} numbers is a box x y w h with points inside it, as of"
            " a pose: set kpt_shape in data.yaml to [number of keypoints, 2 or 3]"
        )
    polygon_notes = [f"{len(polygons)} lines are polygons; their bounds are taken"] if polygons else []
    return builder.table(), problems, [*notes, *image_notes, *builder.notes(), *lost.notes(), *polygon_notes]


def _size(image: Path, name: str, problems: Problems) -> tuple[int, int] | None:
    try:
        return image_size(image)
    except ImageError as error:
        problems.add("image file unreadable", str(error), name)
        return None


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


def _images(path: Path) -> tuple[list[Path], list[str]]:
    """The images of a folder or a list, and notes on what is not among them."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return [file for file in files if is_image_name(file)], count_unread(files)
    lines = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else []
    listed = [line.strip() for line in lines if line.strip()]
    images = [find_place(line, [path.parent]) or path.parent / line for line in dict.fromkeys(listed)]
    unique = list({os.path.normpath(image): image for image in images})
    more = len(listed) - len(unique)
    return list(map(Path, unique)), [f"{more} lines of {path} name an image again, which is read once"] if more else []


def _report_labels_without_image(folder: Path, known: set[Path], problems: Problems) -> None:
    """Labels whose image is gone would be left out without a word."""
    labels = label_file(folder / "a").parent
    if not folder.is_dir() or labels == folder or not labels.is_dir():
        return
    for file in sorted(labels.rglob("*.txt")):
        if file not in known and file.name != "classes.txt" and file.stat().st_size:
            problems.add("label file without an image", f"{file}", file.name)


def _labels(
    path: Path, names: dict[int, str], size: tuple[int, int], keypoints: int
) -> tuple[list[tuple[str, tuple[float, ...]]], list[tuple[str, str]], list[list[float]]]:
    """Objects, faults with their place, and polygons of one label file."""
    objects: list[tuple[str, tuple[float, ...]]] = []
    faults: list[tuple[str, str]] = []
    polygons: list[list[float]] = []
    try:
        text = path.read_text(encoding="utf-8-sig") if path.is_file() else ""
    except UnicodeDecodeError as error:
        return [], [("label file that is not text", f"{path}: {error}")], []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}: {line.strip()[:80]}"
        try:
            number_of_class, *values = [float(text) for text in line.split()]
        except ValueError:
            faults.append(("line that is not numbers", where))
            continue
        if fault := _line_fault(number_of_class, values, names, keypoints):
            faults.append((fault, where))
            continue
        is_polygon = len(values) > 4 and not keypoints
        polygons += [values] * is_polygon
        shares = values if is_polygon else values[:4]
        box = _bounds(shares, size)
        # A box has a fault of its own before its numbers are no shares.
        if fault := box_fault(box, size) or (NOT_SHARES if _outside(shares) else ""):
            faults.append((fault, where))
        else:
            objects.append((names[int(number_of_class)], box))
    return objects, faults, polygons


def _line_fault(number: float, values: list[float], names: dict[int, str], keypoints: int) -> str:
    if keypoints and len(values) not in (4, 4 + keypoints):
        return f"line that is neither class x y w h nor that and the {keypoints} values of kpt_shape"
    if not keypoints and len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return "line that is neither class x y w h nor class and corners"
    return "" if number in names else "class number without a name"


def _outside(shares: list[float]) -> bool:
    """Whether a share lies outside its image by more than rounding; a centre and size may reach over the edge."""
    return max(shares) > 1 + _ROUNDING or min(shares) < -_ROUNDING


def _bounds(values: list[float], size: tuple[int, int]) -> tuple[float, ...]:
    """Corners in pixels of a centre and size, or of the corners of a polygon, in shares of the image."""
    width, height = size
    if len(values) == 4:
        x, y, w, h = values
        return (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
    across, down = values[::2], values[1::2]
    return min(across) * width, min(down) * height, max(across) * width, max(down) * height


def _are_poses(polygons: list[list[float]]) -> bool:
    """Whether lines are boxes with keypoints: of equally many numbers, and in each the points inside the box."""
    if len(polygons) < _FEWEST or len(set(map(len, polygons))) > 1:
        return False
    return any(
        (len(polygons[0]) - 4) % size == 0 and all(_is_pose(values, size) for values in polygons) for size in (2, 3)
    )


def _is_pose(values: list[float], size: int) -> bool:
    """Whether points of two numbers, or three with a visibility, lie in the box before them; 0, 0 is no point."""
    x, y, w, h = values[:4]
    across, down = values[4::size], values[5::size]
    if size == 3 and not set(values[6::3]) <= {0.0, 1.0, 2.0}:
        return False
    points = [(px, py) for px, py in zip(across, down, strict=True) if px or py]
    return bool(points) and all(
        abs(px - x) <= w / 2 + _ROUNDING and abs(py - y) <= h / 2 + _ROUNDING for px, py in points
    )


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
        content = read_data_yaml(self.root)
        places = content.splits
        if (name := FOLDER_SPLITS[split]) not in places:
            raise MissingSplitError(
                f"{self.root}: there is no {name} split, only {', '.join(places)}; name its folder in the yaml"
                " file, and put its images there"
            )
        place = places[name]
        source = partial(self.open, place, place if place.is_dir() else place.parent, read=_reader(content, name))
        if name == "train":
            return self.train_on(source())
        training = places.get("train")
        asked = self.asked_in_training(training, _reader(content, "train")) if training is not None else None
        return source(training_categories=asked)


def _reader(content: YoloSet, name: str) -> Reader:
    notes = [content.notes[name]] if name in content.notes else []
    return partial(read_yolo, names=content.names, keypoints=content.keypoints, notes=notes)
