"""Writes answers ``[{"bbox_2d": [x1, y1, x2, y2], "label": "A"}, ...]``, and reads them leniently.

A pattern reads answers as the models write them, a lenient scanner (`lenient_json`) all others. Both take linear time
and never raise. Whether a box is inside the image is checked elsewhere (`vr1.detections`).
"""

import json
import math
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from vr1.families.lenient_json import NUMBER, Fields, Scalar, Scalars, answer_region, scan, stripped
from vr1.types import Answer, Boxes, Span, as_boxes

MAX_ITEMS = 10_000
"""Largest number of items read from one answer, since matching takes time."""

_BOX_KEYS = ("bbox_2d", "bbox", "box", "box_2d", "bounding_box")
_LABEL_KEYS = ("label", "name", "category")
_NUMBER = re.compile(NUMBER)
_W = r"[ \t\n\r]*+"
_JSON_NUMBER = r"(-?+(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][-+]?+[0-9]++)?+)"
_JSON_TEXT = r'"([^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+)"'
# One item of a well-formed list, with the bracket or comma before it.
_ITEM = re.compile(
    rf'[\[,]{_W}(\{{{_W}"bbox_2d"{_W}:{_W}\[{_W}{f"{_W},{_W}".join([_JSON_NUMBER] * 4)}{_W}\]{_W}'
    rf'(?:,{_W}"label"{_W}:{_W}{_JSON_TEXT}{_W})?+\}}){_W}'
)
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
    whole = stripped(completion, 0, len(completion))
    start, end = region = (
        whole
        if completion.startswith(("[", "```json"), whole[0])
        else answer_region(completion, lambda part: "[" in part)
    )
    if completion.startswith("```json", start) and completion.endswith("```", start, end) and end - start > 10:
        start, end = stripped(completion, start + len("```json"), end - len("```"))
    answer = _regular_answer(completion, start, end, follows_template=region == whole)
    if answer is None:
        in_form = region == whole and _is_template(completion[start:end])
        answer = _lenient_answer(completion[start:end], offset=start, follows_template=in_form)
    return answer


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


def _regular_answer(completion: str, start: int, end: int, follows_template: bool) -> Answer | None:
    """The answer if it is a JSON list of nothing but ``bbox_2d`` and ``label``, in this order; else None."""
    boxes: list[tuple[float, ...]] = []
    labels: list[str] = []
    item_spans: list[Span] = []
    box_spans: list[Span] = []
    reached = start
    for match in islice(_ITEM.finditer(completion, start, end), MAX_ITEMS + 1):
        if match.start() != reached or completion[reached] != ("," if boxes else "["):
            return None
        _, x1, y1, x2, y2, label = match.groups()
        boxes.append((float(x1), float(y1), float(x2), float(y2)))
        labels.append("" if label is None else json.loads(f'"{label}"') if "\\" in label else label)
        item_spans.append(match.span(1))
        box_spans.append((match.start(2), match.end(5)))
        reached = match.end()
    if not 0 < len(boxes) <= MAX_ITEMS or completion[reached:end] != "]":
        return None
    array = as_boxes(boxes)
    if not np.isfinite(array).all():
        return None
    return Answer(
        boxes=array,
        labels=tuple(labels),
        follows_template=follows_template,
        item_spans=tuple(item_spans),
        box_spans=tuple(box_spans),
    )


def _is_template(text: str) -> bool:
    """Whether a text is a JSON list of objects with four numbers as ``bbox_2d`` and, if any, a text as ``label``."""
    if not (text.startswith("[") and text.endswith("]")):
        return False
    try:
        items = json.loads(text, parse_int=float)
    except (ValueError, RecursionError):
        return False
    return len(items) <= MAX_ITEMS and all(
        type(item) is dict
        and type(box := item.get("bbox_2d")) is list
        and [*map(type, box)] == [float] * 4
        and type(item.get("label", "")) is str
        for item in items
    )


class _FoundBox(NamedTuple):
    """One box of an answer with its label; where its numbers, its list and its item are."""

    box: list[float]
    label: str
    numbers: Span
    outer: Span
    item: Span


def _lenient_answer(text: str, offset: int, follows_template: bool) -> Answer:
    """The answer in a text that begins at ``offset`` of the completion."""
    found: list[_FoundBox] = []
    problems: list[str] = []
    for value, label, item in islice(_written_boxes(islice(scan(text), MAX_ITEMS)), MAX_ITEMS):
        box = _box(value, text)
        if box is None:
            problems.append(f"no four finite numbers: {_shown(value)}")
        else:
            assert value is not None
            found.append(_FoundBox(box[0], label, box[1], (value.start, value.end), item))
    if len(found) + len(problems) == MAX_ITEMS:
        problems.append(f"nothing is read after {MAX_ITEMS} boxes")
    # An object comes after the objects inside it.
    found.sort(key=lambda one: one.numbers)
    return Answer(
        boxes=as_boxes([one.box for one in found]),
        labels=tuple(one.label for one in found),
        follows_template=follows_template,
        problems=tuple(problems),
        item_spans=tuple((start + offset, end + offset) for start, end in _item_spans(found)),
        box_spans=tuple((one.numbers[0] + offset, one.numbers[1] + offset) for one in found),
    )


def _item_spans(found: Sequence[_FoundBox]) -> Iterator[Span]:
    """For each box, in the order of the text, the part of its item that it does not share with other boxes."""
    reached = 0
    for index, one in enumerate(found):
        before, after = found[index - 1] if index else None, found[index + 1] if index + 1 < len(found) else None
        start = one.outer[0] if before is not None and before.item == one.item else max(one.item[0], reached)
        reached = one.item[1]
        if after is not None and after.item == one.item:
            reached = one.outer[1]
        elif after is not None and after.item[0] >= one.numbers[1]:
            reached = min(reached, after.item[0])
        yield start, reached


def _written_boxes(items: Iterable[Fields | Scalars]) -> Iterator[tuple[Scalar | Scalars | None, str, Span]]:
    """The value of each box, its label, and where its item is; an item may have several boxes in inner lists."""
    for item in items:
        span = (item.start, item.end)
        if isinstance(item, Scalars):
            yield item, "", span
            continue
        value, label = _box_and_label(item)
        if isinstance(value, list):
            for inner in value:
                yield inner, label, span
        else:
            yield value, label, span


def _box_and_label(item: Fields) -> tuple[Scalar | list[Scalars] | None, str]:
    """The value of an object's box, None if it has none, and its label; an object without a label needs no box."""
    values = item.values
    written = next((values[key] for key in _LABEL_KEYS if key in values), None)
    label = written.value if isinstance(written, Scalar) else None
    box = next((values[key] for key in _BOX_KEYS if key in values), None)
    if box is None or (isinstance(box, Scalar) and box.value is None):
        box = next((value for value in values.values() if isinstance(value, list)), None if written else [])
    return box, f"{label:g}" if isinstance(label, float) else label or ""


def _box(written: Scalar | Scalars | None, text: str) -> tuple[list[float], Span] | None:
    """Four finite coordinates and where they are; or None."""
    if isinstance(written, Scalars):
        numbers = [(scalar.value, scalar.start, scalar.end) for scalar in written.items]
    elif written is not None and isinstance(written.value, str) and written.end - written.start < _LONGEST_NUMBER:
        matches = _NUMBER.finditer(text, written.start, written.end)
        numbers = [(match[0], match.start(), match.end()) for match in matches]
    else:
        return None
    if len(numbers) != 4:
        return None
    try:
        box = [float(value) for value, _, _ in numbers if value is not None]
    except ValueError:
        return None
    if len(box) < 4 or not all(map(math.isfinite, box)):
        return None
    return box, (numbers[0][1], numbers[-1][2])


def _shown(written: Scalar | Scalars | None) -> str:
    """A value in a message."""
    if isinstance(written, Scalars):
        return reprlib.repr([scalar.value for scalar in written.items])
    return reprlib.repr(None if written is None else written.value)
