"""Sorts the annotations of a COCO file into sound objects and problems."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vr1.data.box_checks import BoxCutter, Corners, box_fault
from vr1.data.json_fields import field_fault, is_area, is_box, is_int
from vr1.data.problems import Problems

_IDS = {"id": is_int, "image_id": is_int, "category_id": is_int}


class CocoObject(NamedTuple):
    """One sound annotation: ``box`` is ``[x1, y1, x2, y2]`` in pixels, inside the image."""

    category_row: int
    box: Corners
    area: float
    crowd: bool


class ObjectReader:
    """Reads annotations against the images and categories of the same file.

    Args:
        images: sound images of the file, by id.
        faulty_images: ids of images that are left out; their annotations go with them.
        category_rows: row of the table's categories, by category id.
        problems: takes the faults.

    Attributes:
        objects: sound objects, by image id.
        spoilt: ids of images that have a faulty annotation.
    """

    def __init__(
        self,
        images: Mapping[int, dict[str, Any]],
        faulty_images: set[int],
        category_rows: Mapping[int, int],
        problems: Problems,
    ) -> None:
        self.objects: dict[int, list[CocoObject]] = {}
        self.spoilt: set[int] = set()
        self._images, self._faulty_images = images, faulty_images
        self._category_rows, self._problems = category_rows, problems
        self._ids: set[int] = set()
        self._on_faulty_images = 0
        self._cut = BoxCutter()

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
            self._problems.add(fault, self._name(position, item))
            if isinstance(image_id, int):
                self.spoilt.add(image_id)

    def notes(self) -> list[str]:
        """What was put right or left out without being a fault of its own."""
        notes = self._cut.notes()
        if self._on_faulty_images:
            notes.append(f"{self._on_faulty_images} annotations go with images that are left out")
        if 0 in self._ids:
            notes.append(
                "annotation ids start at 0; they are numbered afresh for evaluation, since pycocotools takes a match "
                "with id 0 for no match"
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
        box = self._cut(_corners(item), self._size(item))
        area = item.get("area")
        area = item["bbox"][2] * item["bbox"][3] if area is None else area
        entry = CocoObject(self._category_rows[item["category_id"]], box, area, bool(item.get("iscrowd", 0)))
        self.objects.setdefault(item["image_id"], []).append(entry)

    def _size(self, item: dict[str, Any]) -> tuple[float, float]:
        image = self._images[item["image_id"]]
        return image["width"], image["height"]

    def _name(self, position: int, item: Any) -> str:
        if not isinstance(item, dict):
            return f"annotations[{position}] = {item!r}"
        name = f"annotation {item['id']}" if is_int(item.get("id")) else f"annotations[{position}]"
        image = self._images.get(item["image_id"]) if is_int(item.get("image_id")) else None
        where = f"of image id {item.get('image_id')}"
        if image is not None:
            where = f"on {image['file_name']} ({image['width']} x {image['height']})"
        return f"{name} {where}: category id {item.get('category_id')}, bbox {item.get('bbox')}"


def _corners(item: dict[str, Any]) -> Corners:
    x, y, width, height = item["bbox"]
    return x, y, x + width, y + height
