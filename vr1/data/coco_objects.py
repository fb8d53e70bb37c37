"""Reads the annotations of a COCO file, each checked against the images and categories of the file."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from vr1.data.annotations import BoxClipper, Corners, box_fault
from vr1.data.segmentation import segmentation_bounds
from vr1.data.validation import LostObjects, Problems, field_fault, identifier, is_area, is_id, number, numbers
from vr1.errors import UserError

BoxFormat = Literal["xyxy", "xywh"]
Id = int | str

CORNERS = "bbox whose 'area' is that of corners [x1, y1, x2, y2], not of [x, y, width, height]: set box_format: xyxy"
_IDS = {"id": is_id, "image_id": is_id, "category_id": is_id}
# Boxes that show a format: of fewer, some reach over an edge by chance.
_FEWEST = 3
_OVER_THE_EDGE = 1 / 3


class CocoImage(NamedTuple):
    """One valid image: its name and its size in pixels."""

    file_name: str
    width: int
    height: int


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
        box_format: what ``bbox`` holds; None takes COCO's ``xywh`` and refuses what looks like corners.

    Attributes:
        objects: valid objects, by image id.
        with_faults: ids of images that have a faulty annotation, which have lost an object.
    """

    def __init__(
        self,
        images: Mapping[Id, CocoImage],
        faulty_images: set[Id],
        category_rows: Mapping[Id, int],
        problems: Problems,
        box_format: BoxFormat | None = None,
    ) -> None:
        self.objects: dict[Id, list[CocoObject]] = {}
        self.with_faults: set[Id] = set()
        self._images, self._faulty_images = images, faulty_images
        self._category_rows, self._problems, self._box_format = category_rows, problems, box_format
        # By id: a hash of the image, the category and the box that had it first, since there may be a million.
        self._ids: dict[Id, int] = {}
        self._on_faulty_images, self._from_segmentation = 0, 0
        self._repeated: list[str] = []
        self._copies = 0
        self._boxes, self._as_corners, self._over_the_edge = 0, 0, 0
        self._clip = BoxClipper()

    def read(self, annotations: Sequence[Any]) -> None:
        """Sort every annotation into `objects` or the problems.

        Raises:
            UserError: the boxes of the whole file look like corners, and no format is given.
        """
        for position, item in enumerate(annotations):
            image_id = identifier(item.get("image_id")) if isinstance(item, dict) else None
            if image_id in self._faulty_images:
                self._on_faulty_images += 1
                continue
            fault = self._link_fault(item) or self._add(item)
            if fault is None:
                continue
            image = None if image_id is None else self._images.get(image_id)
            self._problems.add(fault, self._name(position, item, image), image.file_name if image else "")
            if image_id is not None:
                self.with_faults.add(image_id)
        if (
            self._box_format is None
            and self._boxes == self._as_corners >= _FEWEST
            and self._over_the_edge >= _OVER_THE_EDGE * self._boxes
        ):
            raise UserError(
                f"annotations={self._problems.source}: every bbox fits its image as corners [x1, y1, x2, y2], and"
                f" {self._over_the_edge} of {self._boxes} reach outside it as [x, y, width, height]: set box_format to"
                " xyxy (or to xywh, if they are right)"
            )

    def notes(self) -> list[str]:
        """What was changed or left out without being a fault of its own."""
        notes = self._clip.notes()
        if self._on_faulty_images:
            notes.append(f"{self._on_faulty_images} annotations go with images that are left out")
        lost = LostObjects()
        for key in self._images:
            if key in self.with_faults:
                lost.add(self._images[key].file_name, len(self.objects.get(key, ())))
        notes += lost.notes()
        if self._from_segmentation:
            notes.append(
                f"{self._from_segmentation} annotations have no bbox; the bounds of their segmentation are taken"
            )
        if self._copies:
            notes.append(f"{self._copies} annotations are copies of others, id and all, and count once")
        if self._repeated:
            notes.append(
                f"{len(self._repeated)} annotation ids are used more than once, such as {self._repeated[0]}; they are"
                " renumbered"
            )
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
        if identifier(item["image_id"]) not in self._images:
            return "annotation of an unknown image id"
        return (
            None if identifier(item["category_id"]) in self._category_rows else "annotation of an unknown category id"
        )

    def _add(self, item: dict[str, Any]) -> str | None:
        """Add one annotation to the objects, or return what is wrong with it."""
        key, image_id, category_id = (identifier(item[name]) for name in _IDS)
        assert key is not None
        assert image_id is not None
        assert category_id is not None
        image = self._images[image_id]
        size = image.width, image.height
        box = self._corners(item, size)
        if isinstance(box, str):
            return box
        if not is_area(item.get("area")):
            return "annotation whose 'area' is unusable"
        crowd = number(int(item.get("iscrowd") or 0) if item.get("iscrowd") in (None, True, False) else item["iscrowd"])
        if crowd not in (0, 1):
            return "annotation whose 'iscrowd' is neither 0 nor 1"
        if (fault := box_fault(box, size)) is not None:
            return fault
        area = number(item.get("area"))
        if self._box_format is None and _is_area_of_corners(item, area):
            return CORNERS
        category_row = self._category_rows[category_id]
        content = hash((image_id, category_row, box))
        if (first := self._ids.get(key)) == content:
            self._copies += 1
            return None
        if first is None:
            self._ids[key] = content
        else:
            self._repeated.append(f"{key} on {image.file_name}")
        clipped, rounded = self._clip(box, size, image.file_name)
        area = (box[2] - box[0]) * (box[3] - box[1]) if area is None else area
        entry = CocoObject(category_row, clipped, area, bool(crowd), rounded)
        self.objects.setdefault(image_id, []).append(entry)
        return None

    def _corners(self, item: dict[str, Any], size: tuple[int, int]) -> tuple[float, ...] | str:
        """The corners of an annotation, not clipped; or what is wrong with them."""
        given = item.get("bbox")
        if given in (None, []):
            bounds = segmentation_bounds(item.get("segmentation"), size)
            if bounds is None:
                return "annotation whose 'bbox' is unusable" if "bbox" in item else "annotation without 'bbox'"
            self._from_segmentation += 1
            return bounds
        box = numbers(given, 4)
        if box is None:
            return "annotation whose 'bbox' is unusable"
        a, b, c, d = box
        self._boxes += 1
        self._as_corners += a < c <= size[0] + 1 and b < d <= size[1] + 1
        self._over_the_edge += a + c > size[0] + 1 or b + d > size[1] + 1
        return (a, b, c, d) if self._box_format == "xyxy" else (a, b, a + c, b + d)

    def _name(self, position: int, item: Any, image: CocoImage | None) -> str:
        if not isinstance(item, dict):
            return f"annotations[{position}] = {item!r}"
        name = f"annotation {item['id']}" if is_id(item.get("id")) else f"annotations[{position}]"
        where = f"of image id {item.get('image_id')}"
        if image is not None:
            where = f"on {image.file_name} ({image.width} x {image.height})"
        return f"{name} {where}: category id {item.get('category_id')}, bbox {item.get('bbox')}"


def _is_area_of_corners(item: dict[str, Any], area: float | None) -> bool:
    """Whether the ``area`` of a box without a mask contradicts ``[x, y, width, height]`` and fits two corners.

    With a mask the area is the mask's, which is that of the corners by chance once in a few hundred annotations; then
    the mask itself has to lie between the corners too.
    """
    box = numbers(item.get("bbox"), 4)
    if area is None or box is None:
        return False
    a, b, c, d = box
    of_corners = (c - a) * (d - b)
    if c <= a or d <= b or abs(area - of_corners) > 0.5 + 0.005 * of_corners or abs(area - c * d) <= 0.05 * c * d:
        return False
    segmentation = item.get("segmentation")
    if not segmentation:
        return True
    bounds = segmentation_bounds(segmentation, None)
    return bounds is not None and max(abs(x - y) for x, y in zip(bounds, box, strict=True)) <= 1
