"""One row of Vision-R1-Data, or of any data set of the same columns: the question, and the boxes that answer it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from vr1.data.annotations import TableBuilder, box_fault, plain_label
from vr1.data.images import ImageError, open_image
from vr1.data.question_text import ParsedQuestion, parse_question
from vr1.data.validation import is_side, is_text, numbers, side
from vr1.errors import UserError
from vr1.types import DetectionRecord

_SPLITS = ("train", "validation", "test")


def load_table(path: str, split: str = "train", streaming: bool = False) -> Any:
    """A data set by its name on the hub, or a local one.

    Args:
        path: a folder that ``save_to_disk`` wrote, a folder or file of parquet or arrow, or a name on the hub such as
            ``JefferyZhan/Vision-R1-Data``.
        split: the split to take, where there are several.
        streaming: read it row by row from the hub (or the disk), and store none of it.

    Returns:
        A ``datasets.Dataset`` whose column ``image`` holds bytes or paths, read from disk row by row; for a stream a
        ``datasets.IterableDataset``.

    Raises:
        UserError: if the library is missing, there is no such data set or split, or its files cannot be read.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{path}: reading it needs the library `datasets`; run pip install datasets") from error
    place = Path(path).expanduser()
    try:
        if place.exists():
            table = _local(datasets, place, split, streaming)
        else:
            table = datasets.load_dataset(path, split=split, streaming=streaming)
    except UserError as error:
        raise UserError(f"{path}: cannot be read: {error}; check data.path and data.split") from error
    except Exception as error:  # the library raises whatever its many backends raise
        state = "cannot be read" if place.exists() else "is no local path, and cannot be loaded from the hub"
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: {state} ({type(error).__name__}: {reason}); check the path or the name") from error
    if isinstance((table.features or {}).get("image"), datasets.Image):
        table = table.cast_column("image", datasets.Image(decode=False))
    return table


def _local(datasets: Any, place: Path, split: str, streaming: bool) -> Any:
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        table = datasets.load_from_disk(str(place))
        if isinstance(table, datasets.DatasetDict):
            if split not in table:
                raise UserError(f"there is no split {split}, only {', '.join(table)}")
            table = table[split]
        return table.to_iterable_dataset() if streaming else table
    for kind in ("parquet", "arrow"):
        files = [place] if place.suffix == f".{kind}" else _of_split(place, kind, split)
        if files:
            names = [str(file) for file in files]
            return datasets.load_dataset(kind, data_files=names, split="train", streaming=streaming)
    raise UserError("no parquet or arrow file, nor the files that save_to_disk writes")


def _of_split(place: Path, kind: str, split: str) -> list[Path]:
    """The files of a split, by their names (train-00000-of-00004.parquet) or that of their folder (train/0.parquet)."""
    files = sorted(place.rglob(f"*.{kind}"))

    def of(name: str) -> list[Path]:
        folders = {file: file.relative_to(place).parent.name for file in files}
        return [file for file in files if file.name.startswith(name) or folders[file] == name]

    if own := of(split):
        return own
    if others := [name for name in _SPLITS if of(name)]:
        raise UserError(f"there is no split {split}, only {', '.join(others)}")
    return files


COLUMNS = ("problem", "solution", "width", "height")


class ParsedRow(NamedTuple):
    """The checked content of a row.

    Attributes:
        question: the categories, or the one expression.
        objects: label and corners (x1, y1, x2, y2 in pixels) of each object.
        size: width and height of the image in pixels.
    """

    question: ParsedQuestion
    objects: list[tuple[str, list[float]]]
    size: tuple[int, int]


def check_columns(names: Any, name: str) -> None:
    """Check that a data set has the columns of Vision-R1-Data.

    Raises:
        UserError: if one is missing.
    """
    if missing := [column for column in ("image", *COLUMNS) if column not in names]:
        raise UserError(
            f"{name}: has no column {', '.join(missing)}, only {', '.join(names)}; give a data set "
            f"with the columns image, {', '.join(COLUMNS)}"
        )


class RowError(Exception):
    """A record that cannot be used: the kind of fault, and what shows it."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, f": {detail[:160]}" if detail else ""


def parse_row(row: dict[str, Any]) -> ParsedRow:
    """Read a row, its image aside.

    Raises:
        RowError: if it cannot be used.
    """
    if not (is_side(row["width"]) and is_side(row["height"])):
        raise RowError("record without a width and height above 0", f"{row['width']} x {row['height']}")
    size = side(row["width"]) or 0, side(row["height"]) or 0
    objects = _objects(row["solution"], size)
    labels = list(dict.fromkeys(label for label, _ in objects))
    question = parse_question(row["problem"], labels) if is_text(row["problem"]) else None
    if question is None:
        raise RowError("record whose question follows no known template", repr(row["problem"]))
    if len(question.categories) == 1:
        # A referring expression may be labelled by its category; the label to answer with is the expression.
        return ParsedRow(question, [(question.categories[0], box) for _, box in objects], size)
    folded = {name.casefold() for name in question.categories}
    if strange := [label for label in labels if label.casefold() not in folded]:
        raise RowError("record with a label that its question does not name", strange[0])
    return ParsedRow(question, objects, size)


def _objects(solution: Any, size: tuple[int, int]) -> list[tuple[str, list[float]]]:
    try:
        items = json.loads(solution) if isinstance(solution, str) else solution
    except (ValueError, RecursionError) as error:
        raise RowError("record whose solution is not JSON", str(error)) from error
    if not isinstance(items, list):
        raise RowError("record whose solution is no list", repr(items))
    objects = []
    for item in items:
        box = numbers(item[1], 4) if isinstance(item, list) and len(item) == 2 else None
        if box is None or not is_text(item[0]):
            raise RowError("record with an item that is not [label, [x1, y1, x2, y2]]", repr(item))
        if fault := box_fault(box, size):
            raise RowError(fault, f"{item!r:.80} on {size[0]} x {size[1]}")
        objects.append((plain_label(item[0]), [float(value) for value in box]))
    return objects


def decode_row(stored: Any, row: ParsedRow, number: int, name: str) -> DetectionRecord:
    """The record of a row.

    Args:
        stored: what the column ``image`` holds: the bytes of an image as the library gives them, or its path.
        row: the rest of the row.
        number: number of the row in the data set.
        name: what the data set is called, for messages.

    Raises:
        ImageError: if there is no image, it cannot be decoded, or it has another size than the row says.
    """
    origin = f"{name}[{number}]"
    image = _decode_image(stored, origin, row.size)
    builder = TableBuilder(referring=row.question.referring)
    builder.add_image(origin, row.size)
    for label, box in row.objects:
        builder.add_object(label, box)
    table = builder.table()
    return DetectionRecord(
        image=image,
        boxes_xyxy=table.boxes_xyxy,
        labels=tuple(table.categories[category] for category in table.category_rows),
        categories=row.question.categories,
        image_id=number + 1,
        origin=origin,
        areas=table.areas,
        crowd=table.crowd,
        referring=table.referring,
    )


def _decode_image(stored: Any, origin: str, size: tuple[int, int]) -> Image.Image:
    if isinstance(stored, dict) and stored.get("bytes") is not None:
        image = open_image(origin, data=stored["bytes"])
    else:
        path = stored.get("path") if isinstance(stored, dict) else stored
        if not isinstance(path, str | Path):
            raise ImageError(f"{origin}: has no image; leave the record out")
        image = open_image(path)
    if image.size != size:
        raise ImageError(
            f"{origin}: the image is {image.size[0]} x {image.size[1]}, its record says {size[0]} x {size[1]}; leave"
            " the record out"
        )
    return image
