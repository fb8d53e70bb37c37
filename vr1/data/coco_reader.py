"""Reads one COCO annotation file and checks everything in it that can be known without its images.

Faults of the entire file (no JSON, no ``images``, unusable categories) raise at once. Faults of single images and
annotations are collected in `Problems`, and those records are left out of the table: the caller decides whether that
is an error.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from vr1.data.annotations import AnnotationTable, BoxClipper, Corners, box_fault
from vr1.data.validation import SHOWN, Problems, field_fault, has_id, is_area, is_box, is_int, is_side, is_text
from vr1.errors import UserError
from vr1.types import as_boxes

_IDS = {"id": is_int, "image_id": is_int, "category_id": is_int}


class CocoObject(NamedTuple):
    """One valid annotation: ``box`` is ``[x1, y1, x2, y2]`` in pixels, inside the image; see `AnnotationTable`."""

    category_row: int
    box: Corners
    area: float
    crowd: bool
    rounded: bool


class ObjectReader:
    """Reads annotations against the images and categories of the same file.

    Args:
        images: valid images of the file, by id.
        faulty_images: ids of images that are left out; their annotations go with them.
        category_rows: row of the table's categories, by category id.
        problems: where faults are added.

    Attributes:
        objects: valid objects, by image id.
        with_faults: ids of images that have a faulty annotation.
    """

    def __init__(
        self,
        images: Mapping[int, dict[str, Any]],
        faulty_images: set[int],
        category_rows: Mapping[int, int],
        problems: Problems,
    ) -> None:
        self.objects: dict[int, list[CocoObject]] = {}
        self.with_faults: set[int] = set()
        self._images, self._faulty_images = images, faulty_images
        self._category_rows, self._problems = category_rows, problems
        self._ids: set[int] = set()
        self._on_faulty_images = 0
        self._clip = BoxClipper()

    def read(self, annotations: Sequence[Any]) -> None:
        """Sort every annotation into `objects` or the problems."""
        for position, item in enumerate(annotations):
            image_id = item.get("image_id") if isinstance(item, dict) else None
            if is_int(image_id) and image_id in self._faulty_images:
                self._on_faulty_images += 1
                continue
            fault = self._link_fault(item) or self._box_fault(item)
            if fault is None:
                self._add(item)
                continue
            image = self._images.get(image_id) if isinstance(image_id, int) else None
            self._problems.add(fault, self._name(position, item, image), image["file_name"] if image else "")
            if isinstance(image_id, int):
                self.with_faults.add(image_id)

    def notes(self) -> list[str]:
        """What was changed or left out without being a fault of its own."""
        notes = self._clip.notes()
        if self._on_faulty_images:
            notes.append(f"{self._on_faulty_images} annotations go with images that are left out")
        if 0 in self._ids:
            notes.append(
                "annotation ids start at 0; they are renumbered for evaluation, since pycocotools reads a match with "
                "id 0 as no match"
            )
        return notes

    def _link_fault(self, item: Any) -> str | None:
        fault = field_fault(item, "annotation", _IDS)
        if fault is not None:
            return fault
        if item["image_id"] not in self._images:
            return "annotation of an unknown image id"
        if item["category_id"] not in self._category_rows:
            return "annotation of an unknown category id"
        return "annotation id used twice" if item["id"] in self._ids else None

    def _box_fault(self, item: dict[str, Any]) -> str | None:
        fault = field_fault(item, "annotation", {"bbox": is_box})
        if fault is not None:
            return fault
        fault = box_fault(_corners(item), self._size(item))
        if fault is not None:
            return fault
        if not is_area(item.get("area")):
            return "annotation whose 'area' is unusable"
        return None if item.get("iscrowd", 0) in (0, 1) else "annotation whose 'iscrowd' is neither 0 nor 1"

    def _add(self, item: dict[str, Any]) -> None:
        self._ids.add(item["id"])
        box, rounded = self._clip(_corners(item), self._size(item), self._images[item["image_id"]]["file_name"])
        area = item.get("area")
        area = item["bbox"][2] * item["bbox"][3] if area is None else area
        crowd = bool(item.get("iscrowd", 0))
        entry = CocoObject(self._category_rows[item["category_id"]], box, area, crowd, rounded)
        self.objects.setdefault(item["image_id"], []).append(entry)

    def _size(self, item: dict[str, Any]) -> tuple[float, float]:
        image = self._images[item["image_id"]]
        return image["width"], image["height"]

    def _name(self, position: int, item: Any, image: dict[str, Any] | None) -> str:
        if not isinstance(item, dict):
            return f"annotations[{position}] = {item!r}"
        name = f"annotation {item['id']}" if is_int(item.get("id")) else f"annotations[{position}]"
        where = f"of image id {item.get('image_id')}"
        if image is not None:
            where = f"on {image['file_name']} ({image['width']} x {image['height']})"
        return f"{name} {where}: category id {item.get('category_id')}, bbox {item.get('bbox')}"


def _corners(item: dict[str, Any]) -> Corners:
    x, y, width, height = item["bbox"]
    return x, y, x + width, y + height


_IMAGE_FIELDS = {"id": is_int, "file_name": is_text, "width": is_side, "height": is_side}


def read_coco(
    path: Path, empty_names: Literal["error", "leave_out"] = "error"
) -> tuple[AnnotationTable, Problems, list[str]]:
    """Read and check a COCO annotation file.

    Two categories of the same name (case and spaces aside) are merged under the spelling that comes first: in the text
    of a question they are one. Boxes that reach outside their image are clipped to it. Images that share an id are all
    left out, since their annotations cannot be attributed. An image whose every annotation is faulty is left out too:
    without objects it would teach that there is nothing to find.

    Args:
        path: the json file.
        empty_names: refuse a category whose name is empty or spaces, or leave it out with its objects: no question can
            name it.

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
    images = _read_images(document["images"], problems)
    faulty_images = {item["id"] for item in document["images"] if has_id(item)} - images.keys()
    reader = ObjectReader(images, faulty_images, category_rows, problems)
    reader.read(document["annotations"])
    with_faults = [key for key in images if key in reader.with_faults and key not in reader.objects]
    if with_faults:
        names = ", ".join(images[key]["file_name"] for key in with_faults[:SHOWN])
        notes.append(f"{len(with_faults)} images whose every annotation is faulty are left out ({names})")
    left_out = set(with_faults)
    images = {key: image for key, image in images.items() if key not in left_out}
    return _table(images, categories, reader.objects), problems, nameless + notes + reader.notes()


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
    nameless = [item.get("id") for item in items if isinstance(item.get("name"), str) and not item["name"].strip()]
    if not nameless:
        return []
    before = len(document["annotations"])
    document["categories"] = [item for item in items if item.get("id") not in nameless]
    document["annotations"] = [
        item for item in document["annotations"] if not (isinstance(item, dict) and item.get("category_id") in nameless)
    ]
    left_out = before - len(document["annotations"])
    return [f"{len(nameless)} categories without a name are left out with their {left_out} objects"]


def _read_categories(path: Path, items: list[Any]) -> tuple[dict[int, int], tuple[str, ...], list[str]]:
    rows: dict[int, int] = {}
    spellings: dict[str, str] = {}
    notes = []
    for position, item in enumerate(items):
        fault = field_fault(item, "category", {"id": is_int, "name": is_text})
        if fault is None and item["id"] in rows:
            fault = f"category id {item['id']} used twice"
        if fault is not None:
            raise UserError(f"annotations={path}: categories[{position}] = {item}: {fault}; fix the list")
        name = " ".join(item["name"].split())
        folded = name.casefold()
        if folded in spellings:
            notes.append(f"category {item['id']} ({name}) is merged with {spellings[folded]}: the same name")
        spellings.setdefault(folded, name)
        rows[item["id"]] = list(spellings).index(folded)
    return rows, tuple(spellings.values()), notes


def _read_images(items: list[Any], problems: Problems) -> dict[int, dict[str, Any]]:
    images: dict[int, dict[str, Any]] = {}
    twice = set()
    for position, item in enumerate(items):
        fault = field_fault(item, "image", _IMAGE_FIELDS)
        if fault is None and item["id"] in images:
            fault = "image id used twice"
            twice.add(item["id"])
        if fault is None:
            images[item["id"]] = item
            continue
        shown = item.get("file_name", item) if isinstance(item, dict) else item
        other = f", also {images[item['id']]['file_name']}" if has_id(item) and item["id"] in twice else ""
        where = f"images[{position}] {shown}" + (f": id {item['id']}{other}" if has_id(item) else "")
        problems.add(fault, where, shown if isinstance(shown, str) else "")
    return {key: image for key, image in images.items() if key not in twice}


def _table(
    images: Mapping[int, dict[str, Any]], categories: tuple[str, ...], objects: Mapping[int, list[CocoObject]]
) -> AnnotationTable:
    rows = [row for row, key in enumerate(images) for _ in objects.get(key, [])]
    entries = [entry for key in images for entry in objects.get(key, [])]
    return AnnotationTable(
        image_ids=list(images),
        file_names=[image["file_name"] for image in images.values()],
        sizes=np.array([(image["width"], image["height"]) for image in images.values()], np.int64).reshape(-1, 2),
        categories=categories,
        image_rows=np.array(rows, np.int64),
        category_rows=np.array([entry.category_row for entry in entries], np.int64),
        boxes_xyxy=as_boxes([entry.box for entry in entries]),
        areas=np.array([entry.area for entry in entries], np.float64),
        crowd=np.array([entry.crowd for entry in entries], np.bool_),
        rounded=np.array([entry.rounded for entry in entries], np.bool_),
    )
