"""Reads one COCO annotation file and checks everything in it that can be known without its images.

Faults of the entire file (no JSON, no ``images``, unusable categories) raise at once. Faults of single images and
annotations are collected in `Problems`, and those records are left out of the table: the caller decides whether that
is an error.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vr1.data.annotations import AnnotationTable, plain_label
from vr1.data.coco_objects import BoxFormat, CocoImage, CocoObject, Id, ObjectReader
from vr1.data.image_files import ImageFolder
from vr1.data.images import ImageError
from vr1.data.validation import Problems, field_fault, identifier, is_id, is_side, is_text, side
from vr1.errors import UserError
from vr1.types import as_boxes


def read_coco(
    path: Path,
    empty_names: Literal["error", "leave_out"] = "error",
    box_format: BoxFormat | None = None,
    images: ImageFolder | None = None,
) -> tuple[AnnotationTable, Problems, list[str]]:
    """Read and check a COCO annotation file.

    Two categories of the same name (case, spaces and Unicode form aside) are merged under the spelling that comes
    first: in the text of a question they are one. Boxes that reach outside their image are clipped to it; where there
    is no ``bbox``, the bounds of the segmentation are taken. Ids and numbers may be written as text. Images that share
    an id are all left out, since their annotations cannot be attributed. An image with a faulty annotation is left out
    too: without one of its objects it would teach that there is nothing to find.

    Args:
        path: the json file.
        empty_names: refuse a category whose name is empty or spaces, or leave it out with its objects: no question can
            name it.
        box_format: what ``bbox`` holds; None takes COCO's ``xywh`` and refuses what looks like corners.
        images: the folder of the images, whose headers give the sizes that the file does not.

    Returns:
        The table of the valid records, the problems of the others, and notes on what was changed.

    Raises:
        UserError: if the file is missing, not COCO JSON, or its list of categories cannot be used.

    Source: https://cocodataset.org/#format-data
    """
    document = _load(path)
    nameless = _leave_out_nameless(document) if empty_names == "leave_out" else []
    problems = Problems(str(path))
    category_rows, categories, notes = _read_categories(path, document["categories"])
    valid = _read_images(document["images"], images, problems, notes)
    ids = {identifier(item["id"]) for item in document["images"] if isinstance(item, dict) and is_id(item.get("id"))}
    faulty = {key for key in ids if key is not None and key not in valid}
    reader = ObjectReader(valid, faulty, category_rows, problems, box_format)
    reader.read(document["annotations"])
    valid = {key: image for key, image in valid.items() if key not in reader.with_faults}
    return _table(valid, categories, reader.objects, notes), problems, nameless + notes + reader.notes()


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"annotations={path}: no such file; check the path")
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"annotations={path}: not JSON ({error}); export or download the file again") from error
    if not isinstance(document, dict):
        raise UserError(
            f"annotations={path}: holds a {type(document).__name__} at the top, not an object with images, annotations "
            "and categories; a list is usually a file of detection results: give the file of the ground truth"
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(document.get(key), list):
            raise UserError(
                f"annotations={path}: has no list {key!r}, only {sorted(document)}; a COCO annotation file needs the "
                "lists images, annotations and categories"
            )
    return document


def _leave_out_nameless(document: dict[str, Any]) -> list[str]:
    """Remove categories without a name from a document, with their annotations."""
    items = [item for item in document["categories"] if isinstance(item, dict)]
    nameless = {
        identifier(item.get("id"))
        for item in items
        if isinstance(item.get("name"), str) and not item["name"].strip() and is_id(item.get("id"))
    }
    if not nameless:
        return []
    before = len(document["annotations"])
    document["categories"] = [item for item in items if identifier(item.get("id")) not in nameless]
    document["annotations"] = [
        item
        for item in document["annotations"]
        if not (isinstance(item, dict) and identifier(item.get("category_id")) in nameless)
    ]
    left_out = before - len(document["annotations"])
    return [f"{len(nameless)} categories without a name are left out with their {left_out} objects"]


def _read_categories(path: Path, items: list[Any]) -> tuple[dict[Id, int], tuple[str, ...], list[str]]:
    rows: dict[Id, int] = {}
    spellings: dict[str, str] = {}
    notes = []
    for position, item in enumerate(items):
        fault = field_fault(item, "category", {"id": is_id, "name": is_text})
        key = None if fault else identifier(item["id"])
        if key is not None and key in rows:
            fault = f"category id {key} used twice"
        if fault is not None or key is None:
            raise UserError(f"annotations={path}: categories[{position}] = {item}: {fault}; fix the list")
        name = plain_label(item["name"])
        folded = name.casefold()
        if folded in spellings:
            notes.append(f"category {key} ({name}) is merged with {spellings[folded]}: the same name")
        spellings.setdefault(folded, name)
        rows[key] = list(spellings).index(folded)
    return rows, tuple(spellings.values()), notes


_SIDES = ("width", "height")


def _read_images(
    items: list[Any], folder: ImageFolder | None, problems: Problems, notes: list[str]
) -> dict[Id, CocoImage]:
    images: dict[Id, CocoImage] = {}
    twice: set[Id] = set()
    from_headers = 0
    for position, item in enumerate(items):
        fault = field_fault(item, "image", {"id": is_id, "file_name": is_text})
        size = None
        if fault is None:
            size = _header_size(item, folder) if any(item.get(name) in (None, 0, "") for name in _SIDES) else None
            from_headers += size is not None
            fault = None if size else field_fault(item, "image", dict.fromkeys(_SIDES, is_side))
        key = identifier(item.get("id")) if isinstance(item, dict) else None
        if fault is None and key in images:
            fault = "image id used twice"
            twice.add(key)
        if fault is None and key is not None:
            width, height = size or (side(item[name]) or 0 for name in _SIDES)
            images[key] = CocoImage(item["file_name"], width, height)
            continue
        assert fault is not None
        shown = item.get("file_name", item) if isinstance(item, dict) else item
        other = f", also {images[key].file_name}" if key is not None and key in twice else ""
        where = f"images[{position}] {shown}" + (f": id {key}{other}" if key is not None else "")
        problems.add(fault, where, shown if isinstance(shown, str) else "")
    if from_headers:
        notes.append(f"{from_headers} images have no width and height; those of their files are taken")
    return {key: image for key, image in images.items() if key not in twice}


def _header_size(item: dict[str, Any], folder: ImageFolder | None) -> tuple[int, int] | None:
    """The size of an image whose file exists and can be read."""
    try:
        return None if folder is None else folder.size(item["file_name"])
    except ImageError:
        return None


def _table(
    images: Mapping[Id, CocoImage],
    categories: tuple[str, ...],
    objects: Mapping[Id, list[CocoObject]],
    notes: list[str],
) -> AnnotationTable:
    rows = [row for row, key in enumerate(images) for _ in objects.get(key, [])]
    entries = [entry for key in images for entry in objects.get(key, [])]
    return AnnotationTable(
        image_ids=_whole_ids(images, notes),
        file_names=[image.file_name for image in images.values()],
        sizes=np.array([(image.width, image.height) for image in images.values()], np.int64).reshape(-1, 2),
        categories=categories,
        image_rows=np.array(rows, np.int64),
        category_rows=np.array([entry.category_row for entry in entries], np.int64),
        boxes_xyxy=as_boxes([entry.box for entry in entries]),
        areas=np.array([entry.area for entry in entries], np.float64),
        crowd=np.array([entry.crowd for entry in entries], np.bool_),
        rounded=np.array([entry.rounded for entry in entries], np.bool_),
    )


def _whole_ids(ids: Iterable[Id], notes: list[str]) -> list[int]:
    """The ids as they are where they are numbers; those that are texts are numbered after them."""
    keys = list(ids)
    texts = [key for key in keys if isinstance(key, str)]
    first = 1 + max((key for key in keys if isinstance(key, int)), default=0)
    numbered = {key: first + row for row, key in enumerate(texts)}
    if texts:
        notes.append(f"{len(texts)} image ids are texts, such as {texts[0]}; they are numbered from {first}")
    return [numbered[key] if isinstance(key, str) else key for key in keys]
