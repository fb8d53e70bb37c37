"""Reads answers of an `ItemGrammar` leniently.

It finds the boxes first, by their four numbers; the labels are in the text between them. It takes linear time and never
raises. Whether a box is inside the image is checked elsewhere (`vr1.detections`).
"""

import math
import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from vr1.families.answer_region import answer_region, stripped
from vr1.families.json_answer import MAX_ITEMS, read_json_answer
from vr1.families.lenient_json import NUMBER
from vr1.types import Answer, Span, as_boxes

if TYPE_CHECKING:
    # A grammar reads what it writes as soon as it is made.
    from vr1.families.item_grammar import ItemGrammar

_MARKERS, _BACKWARDS = re.compile(r"(?:<[^<>\s]++>)++"), re.compile(r"(?:>[^<>\s]++<)++")
_PIECE = re.compile(r"<[^<>\s]*+>|[^\s\w]|\w++")
_AROUND = " \t\r\n\"'`*,;"
_DECORATION = _AROUND + "[](){}"


class _Written(NamedTuple):
    """One candidate for a box: its numbers as texts, where they and the box are, and whether its closing text follows.

    The span of the box includes its brackets.
    """

    numbers: list[str]
    span: Span
    start: int
    end: int
    closed: bool


class _Label(NamedTuple):
    """Where the label of a box is; an empty range if it has none.

    It is ``shared`` if it is that of its neighbour in the same item, and ``left_out`` if what stands in its place holds
    the numbers of another box.
    """

    start: int
    end: int
    shared: bool = False
    left_out: bool = False


def read_items(completion: str, grammar: "ItemGrammar") -> Answer:
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
        >>> from vr1.families import ItemGrammar
        >>> grammar = ItemGrammar(item="{label}-{box}", separator="&")
        >>> answer = read_items("cat-[1, 2, 3, 4]&big dog - [5,6,7,8]&cow-[9, 1", grammar)
        >>> answer.labels, answer.boxes.tolist(), answer.follows_template
        (('cat', 'big dog'), [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], False)
    """
    whole = stripped(completion, 0, len(completion))
    start, end = answer_region(completion)
    region, is_whole = completion[start:end], (start, end) == whole
    if _without_whitespace(region) == _without_whitespace(grammar.empty):
        return Answer(boxes=as_boxes([]), labels=(), follows_template=is_whole)
    found = list(islice(_written_boxes(region, grammar), MAX_ITEMS + 1))
    end = len(region)
    if found and not found[-1].closed and not re.search(r"\w", region[found[-1].end :]):
        # Nothing follows it: the answer was truncated, perhaps within the last number.
        end = found.pop().start
    labels = _labels(region[:end], found, grammar)
    follows = is_whole and 0 < len(found) <= MAX_ITEMS and _follows(region, found, labels, grammar)
    if not follows and "{" in region and len((answer := read_json_answer(completion, None, grammar.y_first)).boxes):
        return replace(answer, follows_template=False)
    return _answer(region, found, labels, grammar, start, follows)


@lru_cache(maxsize=64)
def _patterns(grammar: "ItemGrammar") -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Patterns that find boxes, with any count of numbers, split their numbers, and find numbers in a wrong place.

    Three numbers that are separated as in a box are not part of a label, but of a box that lost its bracket.
    """
    literals = [literal.strip() for literal in grammar.box_literals]
    # The decoder may have removed the special tokens around a box, but not its brackets.
    opened, opening = _split_markers(literals[0])
    ended, closing = (text[::-1] for text in _split_markers(literals[-1][::-1], backwards=True))
    # Without an opening text, a match must not start inside a number, or every digit of it would start a new search.
    # Possessive quantifiers prevent backtracking.
    start = rf"{_spaced(opening)}\s*+" if opening else r"(?<![\w.+-])"
    start = rf"(?:{_spaced(opened)}\s*+)?+{start}" if opened else start
    separators = "|".join(_spaced(literal) for literal in sorted(set(literals[1:-1]), key=len, reverse=True) if literal)
    visible = rf"\s*+(?:{separators})\s*+" if separators else r"\s++"
    joint = rf"(?:{visible}|\s++)" if separators else r"\s++"
    close = rf"(?P<closed>\s*+{_spaced(closing)})?+" if closing else "(?P<closed>)"
    close += rf"(?:\s*+{_spaced(ended)})?+" if ended else ""
    return (
        re.compile(rf"{start}(?P<numbers>{NUMBER}(?:{joint}{NUMBER})*+){close}"),
        re.compile(joint),
        re.compile(rf"(?<![\w.+-]){NUMBER}(?:{visible}{NUMBER}){{2,}}+"),
    )


def _spaced(literal: str) -> str:
    """A pattern of a text with optional whitespace between its characters."""
    return r"\s*+".join(re.escape(character) for character in literal if not character.isspace())


def _split_markers(literal: str, backwards: bool = False) -> tuple[str, str]:
    """Special tokens at the start of a text, and the rest; a text of special tokens only is not split."""
    markers = (_BACKWARDS if backwards else _MARKERS).match(literal)
    cut = markers.end() if markers and markers.end() < len(literal) else 0
    return literal[:cut], literal[cut:]


def _written_boxes(region: str, grammar: "ItemGrammar") -> Iterator[_Written]:
    """All candidates for boxes, complete or not."""
    pattern, joint, _ = _patterns(grammar)
    opening, *inner, closing = (literal.strip() for literal in grammar.box_literals)
    # If boxes are separated like numbers, consecutive boxes look like one box of many numbers.
    run_together = bool(opening) and closing + opening in inner
    closes = re.compile(rf"\s*+{_spaced(closing)}")
    for match in pattern.finditer(region):
        first, last = match.span("numbers")
        joints = list(joint.finditer(region, first, last))
        starts, ends = [first, *(gap.end() for gap in joints)], [*(gap.start() for gap in joints), last]
        # A run that has lost a number in its middle does not show whose: it is no box.
        is_whole = len(starts) % 4 == 0 or not region[match.end() :].strip()
        size = 4 if run_together and is_whole else len(starts)
        start = match.start()
        for row in range(0, len(starts), size):
            own = slice(row, row + size)
            is_last = row + size >= len(starts)
            closed = closes.match(region, ends[own][-1])
            end = match.end() if is_last else closed.end() if closed else ends[own][-1]
            yield _Written(
                numbers=[region[left:right] for left, right in zip(starts[own], ends[own], strict=True)],
                span=(starts[own][0], ends[own][-1]),
                start=start,
                end=end,
                closed=match["closed"] is not None or not is_last,
            )
            start = end


def _labels(region: str, found: list[_Written], grammar: "ItemGrammar") -> list[_Label]:
    """Where the label of each box is; an empty range at the box if it has none."""
    before, between, after = grammar.item_literals
    joint = after + grammar.separator + before
    parting = grammar.separator.strip() or grammar.separator
    labels = []
    for index, box in enumerate(found):
        is_last = index + 1 == len(found)
        if grammar.label_first:
            start, end = found[index - 1].end if index else 0, box.start
            head, tail = (joint if index else before), between
            has_neighbour = index > 0
        else:
            start, end = box.end, len(region) if is_last else found[index + 1].start
            head, tail = between, (after if is_last else joint)
            has_neighbour = not is_last
            if parting and (is_last or not region.endswith(tail, 0, end)):
                # After the label there may be the start of a truncated or damaged item.
                end = start + len(region[start:end].partition(parting)[0])
        if grammar.shares_label and has_neighbour and region[start:end].strip() == grammar.box_separator.strip():
            labels.append(_Label(box.start, box.start, shared=True))
            continue
        if len(head) + len(tail) <= end - start and region.startswith(head, start) and region.endswith(tail, 0, end):
            label = stripped(region, start + len(head), end - len(tail))
            part = head if grammar.label_first else tail
            if not part.strip() and (not has_neighbour or "\n" in part):
                # Nothing separates the label from text around the answer, or between items, but the end of a line.
                label = _line(region, *label, last=grammar.label_first)
        else:
            label = _bare_label(region, (start, end), head, tail, grammar.label_first, after_prose=not index)
        at_box = box.start if grammar.label_first else box.end
        holds_numbers = _patterns(grammar)[2].search(region, *label)
        has_label = label[0] < label[1] and not holds_numbers
        labels.append(_Label(*label) if has_label else _Label(at_box, at_box, left_out=bool(holds_numbers)))
    return labels


def _bare_label(region: str, segment: Span, head: str, tail: str, last_line: bool, after_prose: bool) -> Span:
    """Where the label is in a text that is not exactly as the grammar writes it."""
    start, end = segment
    heads, tails = _pieces(head), _pieces(tail)
    for marker in (piece for piece in heads if piece.startswith("<")):
        place = region.rfind(marker, start, end)
        start = start if place < 0 else place + len(marker)
    start, end = _undecorated(region, start, end, heads, tails)
    start, end = _line(region, *stripped(region, start, end, _AROUND), last=last_line)
    if last_line and after_prose:
        # There may be text before the first item: "Here it is: cat".
        start = end - len(region[start:end].rpartition(": ")[2])
    return stripped(region, *stripped(region, start, end, _AROUND))


def _line(region: str, start: int, end: int, last: bool) -> Span:
    """The first or the last line of a range that has no whitespace around it."""
    lines = region[start:end].splitlines(keepends=True) or [""]
    return (end - len(lines[-1]), end) if last else stripped(region, start, start + len(lines[0]))


def _undecorated(region: str, start: int, end: int, heads: Sequence[str], tails: Sequence[str]) -> Span:
    """A range without brackets, quotes, whitespace and parts of the template at its ends."""
    while start < end:
        if region[start] in _DECORATION:
            start += 1
        elif piece := next((piece for piece in heads if region.startswith(piece, start, end)), None):
            start += len(piece)
        else:
            break
    while start < end:
        if region[end - 1] in _DECORATION:
            end -= 1
        elif piece := next((piece for piece in tails if region.endswith(piece, start, end)), None):
            end -= len(piece)
        else:
            break
    return start, end


@lru_cache(maxsize=256)
def _pieces(text: str) -> tuple[str, ...]:
    """The special tokens, words and punctuation marks of a template text."""
    return tuple(dict.fromkeys(_PIECE.findall(text)))


def _follows(region: str, found: list[_Written], labels: list[_Label], grammar: "ItemGrammar") -> bool:
    """Whether the grammar writes exactly this text for these numbers and labels, whitespace aside."""
    if any(len(box.numbers) != 4 for box in found):
        return False
    items: list[tuple[str, list[str]]] = []
    joins = False
    for box, label in zip(found, labels, strict=True):
        text, name = grammar.render_box(box.numbers), region[label.start : label.end]
        if grammar.label_first and label.shared:
            items[-1][1].append(text)
        elif joins:
            items[-1] = (name, [*items[-1][1], text])
        else:
            items.append((name, [text]))
        joins = label.shared and not grammar.label_first
    return _without_whitespace(grammar.render(items)) == _without_whitespace(region)


def _answer(
    region: str, found: list[_Written], labels: list[_Label], grammar: "ItemGrammar", offset: int, follows: bool
) -> Answer:
    """Boxes in the order ``x1, y1, x2, y2``, their labels and spans, and the problems of unusable ones."""
    boxes: list[list[float]] = []
    rows: list[int] = []
    problems: list[str] = []
    for row, written in enumerate(found[:MAX_ITEMS]):
        values = dict(zip(grammar.order, map(float, written.numbers), strict=False))
        if len(written.numbers) == 4 and all(map(math.isfinite, values.values())):
            boxes.append([values[place] + grammar.shift for place in range(4)])
            rows.append(row)
        else:
            problems.append(f"no four finite numbers: {reprlib.repr(written.numbers)}")
        if labels[row].left_out:
            problems.append(f"an item out of step, whose label is left out: {reprlib.repr(written.numbers)}")
    if len(found) > MAX_ITEMS:
        problems.append(f"nothing is read after {MAX_ITEMS} boxes")
    texts = _label_texts(region, labels, grammar)
    items = _item_spans(region, found, labels, grammar)
    return Answer(
        boxes=as_boxes(boxes),
        labels=tuple(texts[row] for row in rows),
        follows_template=follows,
        problems=tuple(problems),
        item_spans=tuple((items[row][0] + offset, items[row][1] + offset) for row in rows),
        box_spans=tuple((found[row].span[0] + offset, found[row].span[1] + offset) for row in rows),
    )


def _label_texts(region: str, labels: list[_Label], grammar: "ItemGrammar") -> list[str]:
    """The label of each box; boxes that share an item have that of the item."""
    texts: list[str] = []
    text = ""
    for label in labels if grammar.label_first else reversed(labels):
        text = text if label.shared else region[label.start : label.end]
        texts.append(text)
    return texts if grammar.label_first else texts[::-1]


def _item_spans(region: str, found: list[_Written], labels: list[_Label], grammar: "ItemGrammar") -> list[Span]:
    """For each box, its part of its item, with the label and the texts around it."""
    before, _, after = (literal.strip() for literal in grammar.item_literals)
    closes = re.compile(rf"\s*+{_spaced(after)}")
    spans: list[Span] = []
    reached = 0
    for row, (box, label) in enumerate(zip(found, labels, strict=True)):
        start, end = min(box.start, label.start), max(box.end, label.end)
        neighbour = labels[row + 1] if grammar.label_first and row + 1 < len(labels) else None
        is_first = not label.shared if grammar.label_first else not (row and labels[row - 1].shared)
        is_last = not label.shared if not grammar.label_first else not (neighbour and neighbour.shared)
        if is_first and before:
            left = reached + len(region[reached:start].rstrip())
            start = left - len(before) if region.endswith(before, reached, left) else start
        if is_last and after:
            closed = closes.match(region, end)
            end = closed.end() if closed else end
        reached = max(end, reached)
        spans.append((start, end))
    return spans


def _without_whitespace(text: str) -> str:
    return "".join(text.split())
