"""Writes answers ``[{"bbox_2d": [x1, y1, x2, y2], "label": "A"}, ...]``, and reads them leniently.

The JSON parser reads well-formed answers, a lenient scanner (`lenient_json`) all others. Both take linear time and
never raise. Whether a box is inside the image is checked elsewhere (`vr1.detections`).
"""

import json
import math
import re
import reprlib
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from vr1.families.lenient_json import NUMBER, answer_region, scan
from vr1.types import Answer, Boxes, as_boxes

MAX_ITEMS = 10_000
"""Largest number of items read from one answer, since matching takes time."""

_BOX_KEYS = ("bbox_2d", "bbox", "box", "box_2d", "bounding_box")
_LABEL_KEYS = ("label", "name", "category")
_DECODER = json.JSONDecoder(parse_int=float)
_NUMBER = re.compile(NUMBER)
_LONGEST_NUMBER = 400


def read_json_answer(completion: str) -> Answer:
    """Read the boxes and labels of a completion, leniently.

    Accepted are: bare or fenced JSON; text around it; an ``<answer>`` region instead of the text outside
    (else the text after ``</think>``); single quotes; the complete items of a truncated answer; one object instead of a
    list; nested lists; other field names; lists of four numbers without a label; numbers in quotes.

    Args:
        completion: the text as the model wrote it.

    Returns:
        Finite boxes as written, with their labels (empty if there is none). ``follows_template`` is true if the full
        completion, without surrounding whitespace, is one JSON list, bare or in one ``json`` fence, of objects with
        ``bbox_2d`` as a list of four numbers and an optional ``label`` as a text. Values of numbers and labels do not
        matter. An answer with reasoning in front does not follow the template.

    Source: Vision-R1, arXiv 2503.18013, section 3.2 (dual format reward: template and content).

    Example:
        >>> answer = read_json_answer('The cat: [{"bbox_2d": [1, 2, 30, 40], "label": "cat"}, {"bbox_2d": [5,')
        >>> answer.boxes.tolist(), answer.labels, answer.follows_template
        ([[1.0, 2.0, 30.0, 40.0]], ('cat',), False)
        >>> read_json_answer("[]").follows_template
        True
    """
    text = completion.strip()
    region = text if text.startswith(("[", "```json")) else answer_region(text, lambda part: "[" in part)
    items = _json_items(region)
    if items is None or len(items) > MAX_ITEMS:
        return _lenient_answer(list(islice(scan(region), MAX_ITEMS)), follows_template=False)
    form = _boxes_and_labels_in_form(items)
    if form is None:
        return _lenient_answer(items, follows_template=False)
    boxes, labels = as_boxes(form[0]), tuple(form[1])
    if not np.isfinite(boxes).all():
        return _lenient_answer(items, follows_template=region is text)
    return Answer(boxes=boxes, labels=labels, follows_template=region is text)


def write_json_answer(boxes: Boxes, labels: Sequence[str]) -> str:
    r"""Write a list as Qwen's released models do: fenced, one item a line, tab-indented, integers.

    Args:
        boxes: ``[N, 4]`` float64 corners in the family's frame.
        labels: N label texts.

    Example:
        >>> write_json_answer(as_boxes([[1, 2, 30.4, 40.6]]), ["cat"])
        '```json\n[\n\t{"bbox_2d": [1, 2, 30, 41], "label": "cat"}\n]\n```'
    """
    assert len(boxes) == len(labels), (len(boxes), len(labels))
    items = [
        f'\t{{"bbox_2d": {[round(value) for value in box]}, "label": {json.dumps(label, ensure_ascii=False)}}}'
        for box, label in zip(boxes.tolist(), labels, strict=True)
    ]
    body = "[\n" + ",\n".join(items) + "\n]" if items else "[]"
    return f"```json\n{body}\n```"


def _json_items(region: str) -> list[dict[str, Any]] | None:
    """The items of one JSON list of objects with a ``bbox_2d``, or None if the region is anything else."""
    if region.startswith("```json") and region.endswith("```") and len(region) > 10:
        region = region[7:-3].strip()
    if not (region.startswith("[") and region.endswith("]")):
        return None
    try:
        items = _DECODER.decode(region)
    except (ValueError, RecursionError):
        return None
    return items if all(type(item) is dict and "bbox_2d" in item for item in items) else None


def _boxes_and_labels_in_form(items: list[dict[str, Any]]) -> tuple[list[list[float]], list[str]] | None:
    """Boxes and labels of all items; None if a box is not four numbers or a label is not a text."""
    boxes = [item["bbox_2d"] for item in items]
    labels = [item.get("label", "") for item in items]
    # Sets of types, since checking each number would take most of the time of reading an answer.
    if not ({*map(type, boxes)} <= {list} and {*map(len, boxes)} <= {4} and {*map(type, labels)} <= {str}):
        return None
    return (boxes, labels) if {*map(type, chain.from_iterable(boxes))} <= {float} else None


def _lenient_answer(items: Sequence[dict[str, Any] | list[Any]], follows_template: bool) -> Answer:
    """Boxes, labels and problems of items of the JSON parser or the scanner."""
    boxes: list[list[float]] = []
    labels: list[str] = []
    problems: list[str] = []
    for value, label in islice(_written_boxes(items), MAX_ITEMS):
        box = _box(value)
        if box is None:
            problems.append(f"no four finite numbers: {reprlib.repr(value)}")
        else:
            boxes.append(box)
            labels.append(label)
    if len(boxes) + len(problems) == MAX_ITEMS:
        problems.append(f"nothing is read after {MAX_ITEMS} boxes")
    return Answer(
        boxes=as_boxes(boxes), labels=tuple(labels), follows_template=follows_template, problems=tuple(problems)
    )


def _written_boxes(items: Sequence[dict[str, Any] | list[Any]]) -> Iterator[tuple[Any, str]]:
    """The value of each box with its label; a value may have several boxes in inner lists."""
    for item in items:
        value, label = _box_and_label(item) if isinstance(item, dict) else (item, "")
        if isinstance(value, list) and (not value or any(isinstance(inner, list) for inner in value)):
            for inner in value:
                yield inner, label
        else:
            yield value, label


def _box_and_label(item: dict[str, Any]) -> tuple[Any, str]:
    """The value of an object's box, and its label; an object that contains other objects has no box."""
    label = next((item[key] for key in _LABEL_KEYS if key in item), None)
    if isinstance(label, float):
        label = f"{label:g}"
    box = next((item[key] for key in _BOX_KEYS if key in item), None)
    if box is None and (box := next((value for value in item.values() if isinstance(value, list)), None)) is None:
        box = [None] if label is not None else []
    return box, label if isinstance(label, str) else ""


def _box(written: Any) -> list[float] | None:
    """Four finite coordinates, or None."""
    if isinstance(written, str) and len(written) < _LONGEST_NUMBER:
        written = _NUMBER.findall(written)
    if not isinstance(written, list) or len(written) != 4:
        return None
    try:
        box = [float(value) for value in written if not isinstance(value, bool)]
    except (ValueError, TypeError):
        return None
    return box if len(box) == 4 and all(map(math.isfinite, box)) else None
