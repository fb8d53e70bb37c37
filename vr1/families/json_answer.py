"""Writes answers ``[{"bbox_2d": [x1, y1, x2, y2], "label": "A"}, ...]``, and reads them however they came out.

A well-formed answer goes through the JSON parser; anything else through a lenient scanner (`lenient_json`). Both take
time linear in the length of the text and neither raises. What counts as a box *inside the image* is not decided here.
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
"""Items read from one answer. More than that is no answer, and matching them would only cost time."""

_BOX_KEYS = ("bbox_2d", "bbox", "box", "box_2d", "bounding_box")
_LABEL_KEYS = ("label", "name", "category")
_DECODER = json.JSONDecoder(parse_int=float)
_NUMBER = re.compile(NUMBER)
_LONGEST_NUMBER = 400


def read_json_answer(completion: str) -> Answer:
    """Read the boxes and labels of a completion, leniently.

    Read are: bare or fenced JSON; prose around it; an ``<answer>`` region, which wins over everything outside it (else
    what follows ``</think>``); single quotes; items that are complete before a cut; a single object instead of a list;
    nested lists; other names of the fields; lists of four numbers without a label; numbers in quotes.

    Args:
        completion: the text as the model wrote it.

    Returns:
        Finite boxes as written, with their labels (empty where there is none). ``follows_template`` is true if the
        whole completion, surrounding blanks aside, is one JSON list, bare or in one ``json`` fence, of objects that
        each give ``bbox_2d`` as a list of four numbers and a label, where there is one, as a text. Whether numbers and
        labels make sense is a question of content, not of the template. Reasoning in front does not follow it.

    Source: Vision-R1, arXiv 2503.18013, section 3.2 (dual format reward: template and content).

    Example:
        >>> answer = read_json_answer('The cat: [{"bbox_2d": [1, 2, 30, 40], "label": "cat"}, {"bbox_2d": [5,')
        >>> answer.boxes.tolist(), answer.labels, answer.follows_template
        ([[1.0, 2.0, 30.0, 40.0]], ('cat',), False)
        >>> read_json_answer("[]").follows_template
        True
    """
    whole = completion.strip()
    region = whole if whole.startswith(("[", "```json")) else answer_region(whole, lambda text: "[" in text)
    items = _json_items(region)
    if items is None or len(items) > MAX_ITEMS:
        return _lenient_answer(list(islice(scan(region), MAX_ITEMS)), follows_template=False)
    form = _boxes_and_labels_in_form(items)
    if form is None:
        return _lenient_answer(items, follows_template=False)
    boxes, labels = as_boxes(form[0]), tuple(form[1])
    if not np.isfinite(boxes).all():
        return _lenient_answer(items, follows_template=region is whole)
    return Answer(boxes=boxes, labels=labels, follows_template=region is whole)


def write_json_answer(boxes: Boxes, labels: Sequence[str]) -> str:
    r"""Write a list as Qwen's released models do: fenced, one item a line, tab-indented, whole numbers.

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
    """Boxes of four numbers and labels of all items, or None if one of them is anything else."""
    boxes = [item["bbox_2d"] for item in items]
    labels = [item.get("label", "") for item in items]
    # Sets of types, since this is done for every answer and a test of each number would take most of the time.
    if not ({*map(type, boxes)} <= {list} and {*map(len, boxes)} <= {4} and {*map(type, labels)} <= {str}):
        return None
    return (boxes, labels) if {*map(type, chain.from_iterable(boxes))} <= {float} else None


def _lenient_answer(items: Sequence[dict[str, Any] | list[Any]], follows_template: bool) -> Answer:
    """Boxes, labels and problems of the items of either reader."""
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
    """What was written as a box, with its label; a value may hold several boxes in inner lists."""
    for item in items:
        value, label = _box_and_label(item) if isinstance(item, dict) else (item, "")
        if isinstance(value, list) and (not value or any(isinstance(inner, list) for inner in value)):
            for inner in value:
                yield inner, label
        else:
            yield value, label


def _box_and_label(item: dict[str, Any]) -> tuple[Any, str]:
    """What an object gives as its box, and its label; an object that wraps other objects gives no box."""
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
