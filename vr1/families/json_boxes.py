"""Boxes and labels in the objects and lists of a JSON answer, under the names and in the shapes that models use.

Each is read as a whole or counted as a problem, never half. An item that is out of step keeps its box, without a label.
"""

import math
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from vr1.families.lenient_json import NUMBER, Fields, Scalar, Scalars
from vr1.types import Span

_BOX_KEYS = ("bbox_2d", "box_2d", "bbox", "box", "bounding_box", "bboxes", "boxes", "bounding_boxes", "coordinates")
_LABEL_KEYS = (
    *("label", "name", "category", "class", "class_name", "category_name", "label_name", "object_name", "object"),
    *("labels", "names", "categories", "classes", "class_names", "category_names"),
)
_POINT_KEYS = ("point_2d", "point", "points")
_CORNER_KEYS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("left", "top", "right", "bottom"))
# Names of a list of everything, which are not labels.
_CONTAINER_KEYS = {"objects", "items", "detections", "results", "predictions", "annotations", "instances", "answer"}
# The names that stand for two orders of the axes.
_KEYS_OF_AN_ORDER = ("bbox_2d", "box_2d")
_NUMBER = re.compile(NUMBER)
_LONGEST_BOX = 400

_Value = Scalar | list[Scalars] | Fields


class FoundBox(NamedTuple):
    """One box as written, its label, and where its numbers, the list of them and its item are."""

    box: list[float]
    label: str
    numbers: Span
    outer: Span
    item: Span


class _Written(NamedTuple):
    """What should be the four numbers of a box; ``box`` is None if it is not, and ``value`` is what stands there."""

    box: list[float] | None
    numbers: Span
    outer: Span
    value: object


def find_boxes(
    found: Iterable[Fields | Scalars], text: str, box_key: str | None, y_first: bool
) -> Iterator[FoundBox | str]:
    """The boxes of what `lenient_json.scan` yields.

    Args:
        found: objects and lists.
        text: what they were read from.
        box_key: the name under which the family writes boxes; a name that stands for another order is a problem.
        y_first: whether a list of numbers is ``y1, x1, y2, x2``. Named corners are what their names say.

    Yields:
        A box ``x1, y1, x2, y2``, or one short text about what cannot be read.
    """
    for around, group in groupby(found, key=lambda item: item.around if isinstance(item, Scalars) else None):
        if around is None:
            for item in group:
                assert isinstance(item, Fields)
                yield from _boxes_of_object(item, text, box_key, y_first)
            continue
        lists = [item for item in group if isinstance(item, Scalars)]
        names = {(item.start, item.end): item.name for item in lists}
        for written in _boxes_of(lists, text, y_first):
            name = names.get(written.outer)
            if name is None or not isinstance(name.value, str):
                yield _found(written, "", written.outer)
            else:
                item_span = min(name.start, written.outer[0]), max(name.end, written.outer[1])
                yield _found(written, name.value, item_span)


def _boxes_of_object(item: Fields, text: str, box_key: str | None, y_first: bool) -> Iterator[FoundBox | str]:
    """The boxes of one object and what is wrong with it."""
    if not item.values:
        # Faulty texts may have thousands of these.
        return
    values = {_plain(name): value for name, value in item.values.items()}
    label_key = next((name for name in _LABEL_KEYS if _labels(values.get(name))), None)
    labels = _labels(values[label_key]) if label_key else []
    key, box = _box_field(values, bool(labels))
    if key is None and (corners := _corners(values)) is not None:
        boxes = [corners]
    elif key is None and not labels:
        yield from _boxes_by_label(item, text, y_first)
        return
    elif key is None:
        point = next((name for name in _POINT_KEYS if name in values), None)
        yield f"a point and no box: {reprlib.repr(labels)}" if point else f"no box: {reprlib.repr(labels)}"
        return
    else:
        boxes = list(_boxes_of_value(box, text, y_first))
        if key in _KEYS_OF_AN_ORDER and box_key in _KEYS_OF_AN_ORDER and key != box_key:
            yield f"{key} where the family writes {box_key}: perhaps another order of the axes"
    if problem := _label_problem(item, labels, len(boxes), {key, label_key}):
        yield problem
        labels = []
    for row, written in enumerate(boxes):
        label = labels[row] if len(labels) == len(boxes) else labels[0] if labels else ""
        yield _found(written, label, (item.start, item.end))


def _label_problem(item: Fields, labels: Sequence[str], boxes: int, keys: set[str | None]) -> str | None:
    """Why the labels of an object cannot be assigned to its boxes; None if they can."""
    if repeated := {_plain(name) for name in item.repeated} & keys:
        return f"twice in one item: {', '.join(sorted(map(str, repeated)))}"
    if not item.in_step:
        return f"an item out of step, whose label is left out: {reprlib.repr(labels)}"
    if len(labels) not in (0, 1, boxes):
        return f"not one label for each box: {len(labels)} labels, {boxes} boxes"
    return None


def _box_field(values: Mapping[str, _Value], has_label: bool) -> tuple[str | None, _Value | None]:
    """Name and value of the field that holds the box: a known name, else, beside a label, any list that is no point."""
    for name in _BOX_KEYS:
        if name in values and not (isinstance(value := values[name], Scalar) and value.value is None):
            return name, value
    if has_label:
        for name, value in values.items():
            if name not in _LABEL_KEYS and name not in _POINT_KEYS and isinstance(value, list) and not _texts(value):
                return name, value
    return None, None


def _boxes_by_label(item: Fields, text: str, y_first: bool) -> Iterator[FoundBox | str]:
    """The boxes of an object whose names are labels, as in ``{"cat": [[1, 2, 3, 4]], "dog": [5, 6, 7, 8]}``."""
    fields = {name: value for name, value in item.values.items() if isinstance(value, (list, Fields))}
    has_text = any(isinstance(value, Scalar) and isinstance(value.value, str) for value in item.values.values())
    for name, value in fields.items():
        if _plain(name) in _POINT_KEYS:
            yield f"a point and no box: {reprlib.repr(name)}"
            continue
        is_label = not (has_text or _plain(name) in _CONTAINER_KEYS or name in item.repeated) and item.in_step
        boxes = list(_boxes_of_value(value, text, y_first))
        if has_text and boxes:
            yield f"no name of a label is known: {reprlib.repr([*item.values])}"
        for written in boxes:
            yield _found(written, name.strip() if is_label else "", (item.start, item.end))


def _found(written: _Written, label: str, item: Span) -> FoundBox | str:
    if written.box is None:
        return f"no four finite numbers: {reprlib.repr(written.value)}"
    return FoundBox(written.box, label, written.numbers, written.outer, item)


def _boxes_of_value(value: _Value | None, text: str, y_first: bool) -> Iterator[_Written]:
    """What is written as the value of a box."""
    if isinstance(value, list):
        yield from _boxes_of(value, text, y_first)
    elif isinstance(value, Fields):
        corners = _corners({_plain(name): inner for name, inner in value.values.items()})
        span = (value.start, value.end)
        yield corners or _Written(None, span, span, [*value.values])
    elif isinstance(value, Scalar):
        numbers: list[tuple[object, int, int]] = []
        # An escape would shift positions.
        if isinstance(value.value, str) and value.end - value.start == len(value.value) < _LONGEST_BOX:
            matches = _NUMBER.finditer(text, value.start, value.end)
            numbers = [(match[0], match.start(), match.end()) for match in matches]
        yield _written(numbers, (value.start, value.end), value.value, y_first)


def _boxes_of(lists: Sequence[Scalars], text: str, y_first: bool) -> Iterator[_Written]:
    """What is written in lists that stand in one list: each is a box, or two of them are the corners of one."""
    if len(lists) == 2 and all(len(inner.items) == 2 for inner in lists):
        lists = [Scalars(lists[0].items + lists[1].items, lists[0].start, lists[1].end, lists[0].around)]
    for inner in lists:
        # A list without a number, such as "[see above]", is prose.
        if any(isinstance(scalar.value, float) or _NUMBER.search(str(scalar.value)) for scalar in inner.items):
            numbers = [(scalar.value, scalar.start, scalar.end) for scalar in inner.items]
            shown = [scalar.value for scalar in inner.items]
            yield _written(numbers, (inner.start, inner.end), shown, y_first)


def _written(numbers: Sequence[tuple[object, int, int]], outer: Span, shown: object, y_first: bool) -> _Written:
    """Four finite numbers, perhaps in quotes, in the order ``x1, y1, x2, y2``."""
    texts = [value if isinstance(value, float) else str(value).strip() for value, _, _ in numbers]
    box = [float(value) for value in texts if isinstance(value, float) or _NUMBER.fullmatch(value)]
    if len(numbers) != 4 or len(box) < 4 or not all(map(math.isfinite, box)):
        return _Written(None, outer, outer, shown)
    if y_first:
        box = [box[1], box[0], box[3], box[2]]
    return _Written(box, (numbers[0][1], numbers[-1][2]), outer, shown)


def _corners(values: Mapping[str, _Value]) -> _Written | None:
    """The box of an object with a field for each coordinate; None if it has no such fields."""
    for names in _CORNER_KEYS:
        fields = [values.get(name.replace("_", ""), values.get(name)) for name in names]
        found = [value for value in fields if isinstance(value, Scalar)]
        if len(found) == 4:
            span = min(value.start for value in found), max(value.end for value in found)
            shown = [value.value for value in found]
            box = _written([(value.value, *span) for value in found], span, shown, y_first=False)
            return box._replace(numbers=span)
    return None


def _labels(value: _Value | None) -> list[str]:
    """The labels in a field: one text or number, or a list of texts."""
    if isinstance(value, list):
        return _texts(value)
    if isinstance(value, Scalar) and value.value is not None:
        return [f"{value.value:g}" if isinstance(value.value, float) else value.value]
    return []


def _texts(lists: Sequence[Scalars]) -> list[str]:
    """The texts of a list of nothing else."""
    if len(lists) != 1:
        return []
    texts = [scalar.value for scalar in lists[0].items if isinstance(scalar.value, str)]
    return texts if len(texts) == len(lists[0].items) and not all(map(_NUMBER.fullmatch, texts)) else []


def _plain(name: str) -> str:
    """A name of a field without case, with underscores for spaces and hyphens."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")
