"""Reads answers of an `ItemGrammar`, however they came out.

Boxes are found first, by their four numbers; what stands between them holds the labels. Every character is looked at a
bounded number of times and nothing raises. What counts as a box *inside the image* is not decided here.
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
    """What stands at one place as a box: its numbers as texts, and whether its closing text follows them."""

    numbers: list[str]
    start: int
    end: int
    closed: bool


def read_items(completion: str, grammar: ItemGrammar) -> Answer:
    """Read the boxes and labels of a completion, leniently.

    Read are: blanks anywhere between the parts; prose around the items; an ``<answer>`` region, or what follows
    ``</think>``; items without their marker tokens, as a decoder leaves them that drops special tokens; boxes without a
    label; the boxes that are complete before a cut; and JSON, where a model answers in JSON after all.

    Args:
        completion: the text as the model wrote it.
        grammar: the templates of the items.

    Returns:
        Finite boxes as written, with their labels (empty where there is none). ``follows_template`` is true if the
        whole completion is what the grammar makes of the numbers and labels read, blanks aside.

    Example:
        >>> grammar = ItemGrammar(item="{label}-{box}", separator="&")
        >>> answer = read_items("cat-[1, 2, 3, 4]&big dog - [5,6,7,8]&cow-[9, 1", grammar)
        >>> answer.labels, answer.boxes.tolist(), answer.follows_template
        (('cat', 'big dog'), [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], False)
    """
    whole = completion.strip()
    region = answer_region(whole, _patterns(grammar)[0].search)
    if _squeezed(region) == _squeezed(grammar.empty):
        return Answer(boxes=as_boxes([]), labels=(), follows_template=region is whole)
    found = list(islice(_written_boxes(region, grammar), MAX_ITEMS + 1))
    end = len(region)
    if found and not found[-1].closed and not re.search(r"\w", region[found[-1].end :]):
        # Nothing follows it: the text was cut, and so perhaps the last number.
        end = found.pop().start
    labels = _labels(region[:end], found, grammar)
    if region is whole and found and len(found) <= MAX_ITEMS and _follows(region, found, labels, grammar):
        return _answer(found, labels, grammar, follows_template=True)
    if "{" in region and len((answer := read_json_answer(completion)).boxes):
        return replace(answer, follows_template=False)
    return _answer(found, labels, grammar, follows_template=False)


@lru_cache(maxsize=64)
def _patterns(grammar: ItemGrammar) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A pattern that finds boxes of any count of numbers, and one that splits their numbers."""
    literals = [literal.strip() for literal in grammar.box_literals]
    # A decoder may have dropped the markers around a box, its own brackets not.
    opened, opening = _split_markers(literals[0])
    ended, closing = (text[::-1] for text in _split_markers(literals[-1][::-1], backwards=True))
    # Without an opening text a number must not begin inside a longer one, or a row of digits would be read anew from
    # each of them. Possessive quantifiers: no backtracking.
    start = rf"{_spaced(opening)}\s*+" if opening else r"(?<![\w.+-])"
    start = rf"(?:{_spaced(opened)}\s*+)?+{start}" if opened else start
    words = "|".join(_spaced(literal) for literal in sorted(set(literals[1:-1]), key=len, reverse=True) if literal)
    joint = rf"(?:\s*+(?:{words})\s*+|\s++)" if words else r"\s++"
    close = rf"(?P<closed>\s*+{_spaced(closing)})?+" if closing else "(?P<closed>)"
    close += rf"(?:\s*+{_spaced(ended)})?+" if ended else ""
    return re.compile(rf"{start}(?P<numbers>{NUMBER}(?:{joint}{NUMBER})*+){close}"), re.compile(joint)


def _spaced(literal: str) -> str:
    """A pattern of a text with blanks anywhere in it."""
    return r"\s*+".join(re.escape(character) for character in literal if not character.isspace())


def _split_markers(literal: str, backwards: bool = False) -> tuple[str, str]:
    """Markers that a text begins with, and the rest of it; a text of markers alone has none to spare."""
    markers = (_BACKWARDS if backwards else _MARKERS).match(literal)
    cut = markers.end() if markers and markers.end() < len(literal) else 0
    return literal[:cut], literal[cut:]


def _written_boxes(region: str, grammar: ItemGrammar) -> Iterator[_Written]:
    """Everything that looks like a box, complete or not."""
    pattern, joint = _patterns(grammar)
    opening, *inner, closing = (literal.strip() for literal in grammar.box_literals)
    # Some boxes end and begin as their numbers are parted: neighbours then look like one box of many numbers.
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
    """The label written for each box, empty where none is."""
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
            # What follows the last label is the beginning of an item that was cut.
            segment = segment.partition(parting)[0]
        if grammar.shares_label and index and segment.strip() == grammar.box_separator.strip():
            labels.append("")
        elif len(head) + len(tail) <= len(segment) and segment.startswith(head) and segment.endswith(tail):
            labels.append(segment[len(head) : len(segment) - len(tail)])
        else:
            labels.append(_bare_label(segment, head, tail, last_line=grammar.label_first, after_prose=not index))
    return labels


def _bare_label(segment: str, head: str, tail: str, last_line: bool, after_prose: bool) -> str:
    """The label in a stretch of text that is not exactly as the grammar writes it."""
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
    # In front of the first item there may be prose: "Here it is: cat".
    return (lines[-1].rpartition(": ")[2] if after_prose else lines[-1]).strip(_AROUND)


@lru_cache(maxsize=256)
def _pieces(text: str) -> tuple[str, ...]:
    """The markers, words and punctuation marks of a template's text."""
    return tuple(dict.fromkeys(_PIECE.findall(text)))


def _follows(region: str, found: list[_Written], labels: list[str], grammar: ItemGrammar) -> bool:
    """Whether the grammar writes exactly this text from these numbers and labels, blanks aside."""
    if any(len(box.numbers) != 4 for box in found):
        return False
    items: list[tuple[str, list[str]]] = []
    for box, label in zip(found, labels, strict=True):
        text = grammar.render_box(box.numbers)
        if label or not items or not grammar.shares_label:
            items.append((label, [text]))
        else:
            items[-1][1].append(text)
    return _squeezed(grammar.render(items)) == _squeezed(region)


def _answer(found: list[_Written], labels: list[str], grammar: ItemGrammar, follows_template: bool) -> Answer:
    """Boxes in the order ``x1, y1, x2, y2``, their labels, and what could not be used."""
    boxes: list[list[float]] = []
    kept: list[str] = []
    problems: list[str] = []
    label = ""
    for written, own in zip(found[:MAX_ITEMS], labels, strict=False):
        label = own.strip() or (label if grammar.shares_label else "")
        values = dict(zip(grammar.order, map(float, written.numbers), strict=False))
        if len(written.numbers) == 4 and all(map(math.isfinite, values.values())):
            boxes.append([values[place] + grammar.shift for place in range(4)])
            kept.append(label)
        else:
            problems.append(f"no four finite numbers: {reprlib.repr(written.numbers)}")
    if len(found) > MAX_ITEMS:
        problems.append(f"nothing is read after {MAX_ITEMS} boxes")
    return Answer(
        boxes=as_boxes(boxes), labels=tuple(kept), follows_template=follows_template, problems=tuple(problems)
    )


def _squeezed(text: str) -> str:
    return "".join(text.split())
