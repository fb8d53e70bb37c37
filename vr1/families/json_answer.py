"""Writes answers ``[{"bbox_2d": [x1, y1, x2, y2], "label": "A"}, ...]``, and reads them leniently.

A pattern reads answers as the models write them, a lenient scanner (`lenient_json`) all others. Both take linear time
and never raise. Whether a box is inside the image is checked elsewhere (`vr1.detections`).
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice

import numpy as np

from vr1.families.answer_region import answer_region, stripped
from vr1.families.json_boxes import FoundBox, find_boxes
from vr1.families.lenient_json import scan
from vr1.types import Answer, Boxes, Span, as_boxes

MAX_ITEMS = 10_000
"""Largest number of items read from one answer, since matching takes time."""

_W = r"[ \t\n\r]*+"
_JSON_NUMBER = r"(-?+(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][-+]?+[0-9]++)?+)"
_JSON_TEXT = r'"([^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+)"'
_OPENING = re.compile(r"[\[{]")


def read_json_answer(completion: str, box_key: str | None = "bbox_2d", y_first: bool = False) -> Answer:
    """Read the boxes and labels of a completion, leniently.

    Accepted are: bare or fenced JSON; text around it; an ``<answer>`` region, or the text after ``</think>``, instead
    of what is outside (`answer_region`); single quotes, lost quotes and brackets; the complete items of a truncated
    answer; one object instead of a list; nested lists; other names and shapes (`json_boxes`); numbers in quotes.

    Args:
        completion: the text as the model wrote it.
        box_key: the name under which the family writes boxes; None if it writes no JSON.
        y_first: whether a list of numbers is ``y1, x1, y2, x2``.

    Returns:
        Finite boxes as written, with their labels and spans. ``follows_template`` is true if the full completion,
        without surrounding whitespace, is one JSON list, bare or in one ``json`` fence, of objects with ``box_key`` as
        a list of four numbers and an optional ``label`` as a text. Values of numbers and labels do not matter. An
        answer with reasoning in front does not follow the template.

    Source: Vision-R1, arXiv 2503.18013, section 3.2 (dual format reward: template and content).

    Example:
        >>> answer = read_json_answer('The cat: [{"bbox_2d": [1, 2, 30, 40], "label": "cat"}, {"bbox_2d": [5,')
        >>> answer.boxes.tolist(), answer.labels, answer.follows_template
        ([[1.0, 2.0, 30.0, 40.0]], ('cat',), False)
        >>> read_json_answer('[{"box_2d": [2, 1, 40, 30]}]', box_key="box_2d", y_first=True).boxes.tolist()
        [[1.0, 2.0, 30.0, 40.0]]
        >>> read_json_answer("[]").follows_template
        True
    """
    start, end = _unfenced(completion, stripped(completion, 0, len(completion)))
    # A text that is an answer as a whole may have "</think>" in a label.
    answer = _regular_answer(completion, start, end, box_key, y_first) if box_key else None
    if answer is not None:
        return answer
    follows = box_key is not None and _is_template(completion[start:end], box_key)
    if not follows:
        start, end = answer_region(completion)
        start, end = _unfenced(completion, (start, end))
        answer = _regular_answer(completion, start, end, box_key, y_first) if box_key else None
        if answer is not None:
            return replace(answer, follows_template=False)
    return _lenient_answer(completion[start:end], start, follows, box_key, y_first)


def write_json_answer(
    boxes: Boxes, labels: Sequence[str], box_key: str = "bbox_2d", y_first: bool = False, decimals: int = 0
) -> str:
    r"""Write a list as Qwen's released models do: fenced, one item a line, tab-indented, integers.

    Args:
        boxes: ``[N, 4]`` float64 corners in the family's frame.
        labels: N label texts.
        box_key: the name under which the family writes boxes.
        y_first: whether to write ``y1, x1, y2, x2``.
        decimals: of the numbers, in a frame in which integers are too coarse.

    Example:
        >>> write_json_answer(as_boxes([[1, 2, 30.4, 40.6]]), ["cat"])
        '```json\n[\n\t{"bbox_2d": [1, 2, 30, 41], "label": "cat"}\n]\n```'
    """
    assert len(boxes) == len(labels), (len(boxes), len(labels))
    ordered = boxes[:, [1, 0, 3, 2]] if y_first else boxes
    rounded = [[round(value, decimals or None) for value in box] for box in ordered.tolist()]
    items = [
        f'\t{{"{box_key}": {box}, "label": {json.dumps(label, ensure_ascii=False)}}}'
        for box, label in zip(rounded, labels, strict=True)
    ]
    body = "[\n" + ",\n".join(items) + "\n]" if items else "[]"
    return f"```json\n{body}\n```"


def _unfenced(completion: str, region: Span) -> Span:
    """A range without the ``json`` fence around it."""
    start, end = region
    if completion.startswith("```json", start) and completion.endswith("```", start, end) and end - start > 10:
        return stripped(completion, start + len("```json"), end - len("```"))
    return region


@lru_cache(maxsize=8)
def _item_pattern(box_key: str) -> re.Pattern[str]:
    """One item of a well-formed list, with the bracket or comma before it."""
    return re.compile(
        rf'[\[,]{_W}(\{{{_W}"{re.escape(box_key)}"{_W}:{_W}\[{_W}{f"{_W},{_W}".join([_JSON_NUMBER] * 4)}{_W}\]{_W}'
        rf'(?:,{_W}"label"{_W}:{_W}{_JSON_TEXT}{_W})?+\}}){_W}'
    )


def _regular_answer(completion: str, start: int, end: int, box_key: str, y_first: bool) -> Answer | None:
    """The answer if it is a JSON list of nothing but ``box_key`` and ``label``, in this order; else None."""
    boxes: list[tuple[float, ...]] = []
    labels: list[str] = []
    item_spans: list[Span] = []
    box_spans: list[Span] = []
    reached = start
    for match in islice(_item_pattern(box_key).finditer(completion, start, end), MAX_ITEMS + 1):
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
    array = as_boxes(boxes)[:, [1, 0, 3, 2]] if y_first else as_boxes(boxes)
    if not np.isfinite(array).all():
        return None
    return Answer(
        boxes=array,
        labels=tuple(labels),
        follows_template=True,
        item_spans=tuple(item_spans),
        box_spans=tuple(box_spans),
    )


def _is_template(text: str, box_key: str) -> bool:
    """Whether a text is a JSON list of objects with four numbers as ``box_key`` and, if any, a text as ``label``."""
    if not (text.startswith("[") and text.endswith("]")):
        return False
    try:
        items = json.loads(text, parse_int=float)
    except (ValueError, RecursionError):
        return False
    return len(items) <= MAX_ITEMS and all(
        type(item) is dict
        and type(box := item.get(box_key)) is list
        and [*map(type, box)] == [float] * 4
        and type(item.get("label", "")) is str
        for item in items
    )


def _lenient_answer(text: str, offset: int, follows_template: bool, box_key: str | None, y_first: bool) -> Answer:
    """The answer in a text that begins at ``offset`` of the completion."""
    start, end = _json_span(text)
    text, offset, valid = (text[start:end], offset + start, True) if end else (text, offset, False)
    boxes: list[FoundBox] = []
    problems: list[str] = []
    for found in islice(find_boxes(scan(text, valid), text, box_key, y_first), MAX_ITEMS):
        if isinstance(found, str):
            problems.append(found)
        else:
            boxes.append(found)
    if len(boxes) + len(problems) == MAX_ITEMS:
        problems.append(f"nothing is read after {MAX_ITEMS} boxes")
    # An object comes after the objects inside it.
    boxes.sort(key=lambda one: one.numbers)
    return Answer(
        boxes=as_boxes([one.box for one in boxes]),
        labels=tuple(one.label for one in boxes),
        follows_template=follows_template,
        problems=tuple(problems),
        item_spans=tuple((start + offset, end + offset) for start, end in _item_spans(boxes)),
        box_spans=tuple((one.numbers[0] + offset, one.numbers[1] + offset) for one in boxes),
    )


def _json_span(text: str) -> Span:
    """Where a text is valid JSON from its first bracket to its last; an empty range if it is not.

    Line ends in texts are accepted: models write them.
    """
    first = _OPENING.search(text)
    end = max(text.rfind("]"), text.rfind("}")) + 1
    if first is None or not end:
        return 0, 0
    try:
        json.loads(text[first.start() : end], strict=False, parse_int=float)
    except (ValueError, RecursionError):
        return 0, 0
    return first.start(), end


def _item_spans(found: Sequence[FoundBox]) -> Iterator[Span]:
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
