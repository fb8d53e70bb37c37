"""Reads answers of an `ItemGrammar` leniently.

It finds the boxes first, by their four numbers; the labels are in the text between them. It takes linear time and never
raises. Whether a box is inside the image is checked elsewhere (`vr1.detections`).
"""

import math
import re
import reprlib
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from vr1.families.item_grammar import ItemGrammar
from vr1.families.json_answer import MAX_ITEMS, read_json_answer
from vr1.families.lenient_json import NUMBER, answer_region
from vr1.types import Answer, as_boxes

_MARKERS, _BACKWARDS = re.compile(r"(?:<[^<>\s]++>)++"), re.compile(r"(?:>[^<>\s]++<)++")
_PIECE = re.compile(r"<[^<>\s]*+>|[^\s\w]|\w++")
_AROUND = " \t\r\n\"'`*,;"
_DECORATION = _AROUND + "[](){}"


class _Written(NamedTuple):
    """One candidate for a box: its numbers as texts, its position, and whether its closing text follows."""

    numbers: list[str]
    start: int
    end: int
    closed: bool


def read_items(completion: str, grammar: ItemGrammar) -> Answer:
    """Read the boxes and labels of a completion, leniently.

    Accepted are: whitespace between all parts; text around the items; an ``<answer>`` region, or the text after
    ``</think>``; items without special tokens; boxes without a label; the complete boxes of a truncated answer; and
    JSON instead of items.

    Args:
        completion: the text as the model wrote it.
        grammar: the templates of the answer.

    Returns:
        Finite boxes as written, with their labels (empty if there is none). ``follows_template`` is true if the grammar
        writes exactly this completion, whitespace aside, for these numbers and labels.

    Example:
        >>> grammar = ItemGrammar(item="{label}-{box}", separator="&")
        >>> answer = read_items("cat-[1, 2, 3, 4]&big dog - [5,6,7,8]&cow-[9, 1", grammar)
        >>> answer.labels, answer.boxes.tolist(), answer.follows_template
        (('cat', 'big dog'), [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], False)
    """
    text = completion.strip()
    region = answer_region(text, _patterns(grammar)[0].search)
    if _without_whitespace(region) == _without_whitespace(grammar.empty):
        return Answer(boxes=as_boxes([]), labels=(), follows_template=region is text)
    found = list(islice(_written_boxes(region, grammar), MAX_ITEMS + 1))
    end = len(region)
    if found and not found[-1].closed and not re.search(r"\w", region[found[-1].end :]):
        # Nothing follows it: the answer was truncated, perhaps within the last number.
        end = found.pop().start
    labels = _labels(region[:end], found, grammar)
    if region is text and found and len(found) <= MAX_ITEMS and _follows(region, found, labels, grammar):
        return _answer(found, labels, grammar, follows_template=True)
    if "{" in region and len((answer := read_json_answer(completion)).boxes):
        return replace(answer, follows_template=False)
    return _answer(found, labels, grammar, follows_template=False)


@lru_cache(maxsize=64)
def _patterns(grammar: ItemGrammar) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A pattern that finds boxes, with any count of numbers, and one that splits their numbers."""
    literals = [literal.strip() for literal in grammar.box_literals]
    # The decoder may have removed the special tokens around a box, but not its brackets.
    opened, opening = _split_markers(literals[0])
    ended, closing = (text[::-1] for text in _split_markers(literals[-1][::-1], backwards=True))
    # Without an opening text, a match must not start inside a number, or every digit of it would start a new search.
    # Possessive quantifiers prevent backtracking.
    start = rf"{_spaced(opening)}\s*+" if opening else r"(?<![\w.+-])"
    start = rf"(?:{_spaced(opened)}\s*+)?+{start}" if opened else start
    separators = "|".join(_spaced(literal) for literal in sorted(set(literals[1:-1]), key=len, reverse=True) if literal)
    joint = rf"(?:\s*+(?:{separators})\s*+|\s++)" if separators else r"\s++"
    close = rf"(?P<closed>\s*+{_spaced(closing)})?+" if closing else "(?P<closed>)"
    close += rf"(?:\s*+{_spaced(ended)})?+" if ended else ""
    return re.compile(rf"{start}(?P<numbers>{NUMBER}(?:{joint}{NUMBER})*+){close}"), re.compile(joint)


def _spaced(literal: str) -> str:
    """A pattern of a text with optional whitespace between its characters."""
    return r"\s*+".join(re.escape(character) for character in literal if not character.isspace())


def _split_markers(literal: str, backwards: bool = False) -> tuple[str, str]:
    """Special tokens at the start of a text, and the rest; a text of special tokens only is not split."""
    markers = (_BACKWARDS if backwards else _MARKERS).match(literal)
    cut = markers.end() if markers and markers.end() < len(literal) else 0
    return literal[:cut], literal[cut:]


def _written_boxes(region: str, grammar: ItemGrammar) -> Iterator[_Written]:
    """All candidates for boxes, complete or not."""
    pattern, joint = _patterns(grammar)
    opening, *inner, closing = (literal.strip() for literal in grammar.box_literals)
    # If boxes are separated like numbers, consecutive boxes look like one box of many numbers.
    run_together = bool(opening) and closing + opening in inner
    for match in pattern.finditer(region):
        numbers = joint.split(match["numbers"])
        size = 4 if run_together else len(numbers)
        for first in range(0, len(numbers), size):
            yield _Written(
                numbers=numbers[first : first + size],
                start=match.end() if first else match.start(),
                end=match.end(),
                closed=match["closed"] is not None or first + size < len(numbers),
            )


def _labels(region: str, found: list[_Written], grammar: ItemGrammar) -> list[str]:
    """The label of each box, empty if it has none."""
    before, between, after = grammar.item_literals
    joint = after + grammar.separator + before
    parting = grammar.separator.strip() or grammar.separator
    labels = []
    for index, box in enumerate(found):
        if grammar.label_first:
            start, end = found[index - 1].end if index else 0, box.start
            head, tail = (joint if index else before), between
        else:
            start, end = box.end, found[index + 1].start if index + 1 < len(found) else len(region)
            head, tail = between, (joint if index + 1 < len(found) else after)
        segment = region[start:end]
        if not grammar.label_first and index + 1 == len(found) and parting:
            # After the last label there may be the start of a truncated item.
            segment = segment.partition(parting)[0]
        if grammar.shares_label and index and segment.strip() == grammar.box_separator.strip():
            labels.append("")
        elif len(head) + len(tail) <= len(segment) and segment.startswith(head) and segment.endswith(tail):
            labels.append(segment[len(head) : len(segment) - len(tail)])
        else:
            labels.append(_bare_label(segment, head, tail, last_line=grammar.label_first, after_prose=not index))
    return labels


def _bare_label(segment: str, head: str, tail: str, last_line: bool, after_prose: bool) -> str:
    """The label in a text that is not exactly as the grammar writes it."""
    heads, tails = _pieces(head), _pieces(tail)
    for marker in (piece for piece in heads if piece.startswith("<")):
        segment = segment.rpartition(marker)[2]
    start, end = 0, len(segment)
    while start < end:
        if segment[start] in _DECORATION:
            start += 1
        elif piece := next((piece for piece in heads if segment.startswith(piece, start)), None):
            start += len(piece)
        else:
            break
    while start < end:
        if segment[end - 1] in _DECORATION:
            end -= 1
        elif piece := next((piece for piece in tails if segment.endswith(piece, start, end)), None):
            end -= len(piece)
        else:
            break
    lines = segment[start:end].strip(_AROUND).splitlines()
    if not lines:
        return ""
    if not last_line:
        return lines[0].strip(_AROUND)
    # There may be text before the first item: "Here it is: cat".
    return (lines[-1].rpartition(": ")[2] if after_prose else lines[-1]).strip(_AROUND)


@lru_cache(maxsize=256)
def _pieces(text: str) -> tuple[str, ...]:
    """The special tokens, words and punctuation marks of a template text."""
    return tuple(dict.fromkeys(_PIECE.findall(text)))


def _follows(region: str, found: list[_Written], labels: list[str], grammar: ItemGrammar) -> bool:
    """Whether the grammar writes exactly this text for these numbers and labels, whitespace aside."""
    if any(len(box.numbers) != 4 for box in found):
        return False
    items: list[tuple[str, list[str]]] = []
    for box, label in zip(found, labels, strict=True):
        text = grammar.render_box(box.numbers)
        if label or not items or not grammar.shares_label:
            items.append((label, [text]))
        else:
            items[-1][1].append(text)
    return _without_whitespace(grammar.render(items)) == _without_whitespace(region)


def _answer(found: list[_Written], labels: list[str], grammar: ItemGrammar, follows_template: bool) -> Answer:
    """Boxes in the order ``x1, y1, x2, y2``, their labels, and the problems of unusable ones."""
    boxes: list[list[float]] = []
    box_labels: list[str] = []
    problems: list[str] = []
    label = ""
    for written, own in zip(found[:MAX_ITEMS], labels, strict=False):
        label = own.strip() or (label if grammar.shares_label else "")
        values = dict(zip(grammar.order, map(float, written.numbers), strict=False))
        if len(written.numbers) == 4 and all(map(math.isfinite, values.values())):
            boxes.append([values[place] + grammar.shift for place in range(4)])
            box_labels.append(label)
        else:
            problems.append(f"no four finite numbers: {reprlib.repr(written.numbers)}")
    if len(found) > MAX_ITEMS:
        problems.append(f"nothing is read after {MAX_ITEMS} boxes")
    return Answer(
        boxes=as_boxes(boxes), labels=tuple(box_labels), follows_template=follows_template, problems=tuple(problems)
    )


def _without_whitespace(text: str) -> str:
    return "".join(text.split())
