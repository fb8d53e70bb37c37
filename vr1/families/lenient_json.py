"""A scanner that finds objects and lists of numbers in text that should be JSON but may be faulty.

It never raises, has no recursion, takes linear time and stores at most `DEPTH` open brackets, whatever the text. It
does not know boxes and labels; `json_answer` does.
"""

import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile

from vr1.types import Span

NUMBER = r"[-+]?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][-+]?+[0-9]++)?+"
"""Pattern of a decimal number. Every quantifier is possessive: no backtracking, whatever the text."""


_ANSWER_START, _ANSWER_END, _THINK_END = "<answer>", "</answer>", "</think>"


def answer_region(text: str, has_answer: Callable[[str], object]) -> Span:
    """Where in a completion the answer is: its ``<answer>`` region, else the text after ``</think>``, else all.

    Args:
        text: a completion.
        has_answer: whether a text may have a box. Some models write the answer before an empty ``<answer>`` region.

    Returns:
        Start and end of the region, without surrounding whitespace.

    Example:
        >>> text = "<think>maybe [1]</think><answer> [2] </answer>"
        >>> start, end = answer_region(text, lambda part: "[" in part)
        >>> text[start:end]
        '[2]'
    """
    start = text.rfind(_ANSWER_START)
    if start >= 0:
        start += len(_ANSWER_START)
        end = text.find(_ANSWER_END, start)
        end = len(text) if end < 0 else end
        if has_answer(text[start:end]):
            return stripped(text, start, end)
    thought = text.rfind(_THINK_END)
    return stripped(text, 0 if thought < 0 else thought + len(_THINK_END), len(text))


def stripped(text: str, start: int, end: int, around: str | None = None) -> Span:
    """A range of a text without the characters ``around`` it (whitespace by default)."""
    part = text[start:end]
    start += len(part) - len(part.lstrip(around))
    return start, start + len(part.strip(around))


DEPTH = 64
"""Largest number of open brackets; deeper nesting drops the outermost ones, which cannot belong to an answer."""

# A quote ends a string only before a character that may follow a string, so that apostrophes and inner quotes are part
# of it. A line end also ends it, so that a missing quote affects one line. Possessive quantifiers prevent backtracking.
_TOKEN = re.compile(
    r"""
      (?P<open>[\[{]) | (?P<close>[\]}])
    | "(?P<double>(?:[^"\\\n]++|\\[^\n]|"(?!\s*+(?:[,:}\]]|\Z)))*+)(?:"|\\?(?=\n|\Z))
    | '(?P<single>(?:[^'\\\n]++|\\[^\n]|'(?!\s*+(?:[,:}\]]|\Z)))*+)(?:'|\\?(?=\n|\Z))
    | (?P<number>"""
    + NUMBER
    + r""")
    | (?P<word>-?+[^\W\d]\w*+)
    """,
    re.VERBOSE,
)
_BRACKET = re.compile(r"[\[{]")


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number, a text or None, and where it is in the text, without its quotes."""

    value: float | str | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Scalars:
    """A list of scalars, and where it is, brackets included."""

    items: list[Scalar]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Fields:
    """An object: its fields, each a scalar or a list of lists of scalars, and where it is, braces included."""

    values: dict[str, Scalar | list[Scalars]]
    start: int
    end: int


@dataclass(slots=True)
class _Frame:
    """One open bracket: of an object its fields so far, of a list its scalars and its inner lists of scalars."""

    is_object: bool
    start: int
    key: str | None = None
    values: dict[str, Scalar | list[Scalars]] = field(default_factory=dict)
    scalars: list[Scalar] = field(default_factory=list)
    lists: list[Scalars] = field(default_factory=list)

    def add(self, value: Scalar | list[Scalars]) -> None:
        """Add a value: in an object, names and values alternate."""
        if not self.is_object:
            if isinstance(value, Scalar):
                self.scalars.append(value)
            else:
                # Nesting is taken off here. A box moves up at most DEPTH times.
                self.lists += value
        elif self.key is not None:
            self.values[self.key] = value
            self.key = None
        elif isinstance(value, Scalar):
            self.key = str(value.value)


def scan(text: str) -> Iterator[Fields | Scalars]:
    r"""Yield every object and every list of scalars that no object holds, each when it is complete.

    Args:
        text: anything.

    Yields:
        Objects and lists, in which words outside quotes (``true``, ``NaN``) are texts and nested lists are one list of
        lists. Of two fields with one name the later one counts. An object that the text's end cuts off is not yielded.

    Example:
        >>> [found] = scan("Sure! [{'bbox': [1, 2], 'label': 'a man's hat'}, {'bbox': [5, 6")
        >>> found.values["label"]
        Scalar(value="a man's hat", start=34, end=45)
        >>> [[scalar.value for scalar in found.items] for found in scan("[[1, 2, 3, 4], [5, 6, 7, 8]]")]
        [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]
    """
    stack: deque[_Frame] = deque(maxlen=DEPTH)
    position = 0
    # Outside all brackets there is only prose, where quotes mean nothing: skip it.
    while bracket := _BRACKET.search(text, position):
        for token in _TOKEN.finditer(text, bracket.start()):
            kind = token.lastgroup or ""
            if kind == "open":
                stack.append(_Frame(is_object=token[0] == "{", start=token.start()))
            elif kind == "close":
                yield from _close(stack, is_object=token[0] == "}", end=token.end())
            else:
                stack[-1].add(Scalar(_value(kind, token[kind]), *token.span(kind)))
            if not stack:
                position = token.end()
                break
        else:
            break
    # The text ended inside brackets: what is complete in an open list counts, what is inside an open object does not.
    for frame in takewhile(lambda frame: not frame.is_object, stack):
        yield from frame.lists


def _close(stack: deque[_Frame], is_object: bool, end: int) -> Iterator[Fields | Scalars]:
    """Close the innermost bracket, and with it one that was left open inside; a stray bracket closes nothing."""
    if stack[-1].is_object == is_object:
        yield from _pop(stack, end)
    elif len(stack) > 1 and stack[-2].is_object == is_object:
        yield from _pop(stack, end - 1)
        yield from _pop(stack, end)


def _pop(stack: deque[_Frame], end: int) -> Iterator[Fields | Scalars]:
    """Take the innermost bracket off the stack: to its parent where it is a value there, else out."""
    frame = stack.pop()
    parent = stack[-1] if stack else None
    if frame.is_object:
        if parent is not None:
            parent.key = None
        yield Fields(frame.values, frame.start, end)
        return
    lists = [*frame.lists, Scalars(frame.scalars, frame.start, end)] if frame.scalars else frame.lists
    if parent is None or (parent.is_object and parent.key is None):
        yield from lists
    else:
        parent.add(lists)


def _value(kind: str, raw: str) -> float | str | None:
    """The value of a token: a float, None, or a text with its escapes resolved."""
    if kind == "number":
        return float(raw)
    if kind == "word":
        return None if raw in ("null", "None") else raw
    if "\\" not in raw:
        return raw
    try:
        return str(json.loads(f'"{raw}"'))
    except ValueError:
        return raw.replace("\\'", "'").replace('\\"', '"')
