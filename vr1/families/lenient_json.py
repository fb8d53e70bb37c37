"""A scanner that finds objects and lists of numbers in text that should be JSON but may be faulty.

It never raises, has no recursion, takes linear time and stores at most `DEPTH` open brackets, whatever the text. It
does not know boxes and labels; `json_answer` does.
"""

import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any

NUMBER = r"[-+]?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][-+]?+[0-9]++)?+"
"""Pattern of a decimal number. Every quantifier is possessive: no backtracking, whatever the text."""


_ANSWER_START, _ANSWER_END, _THINK_END = "<answer>", "</answer>", "</think>"


def answer_region(text: str, has_answer: Callable[[str], object]) -> str:
    """The part of a completion with the answer: its ``<answer>`` region, else the text after ``</think>``, else all.

    Args:
        text: a completion without surrounding whitespace.
        has_answer: whether a text may have a box. Some models write the answer before an empty ``<answer>`` region.

    Returns:
        The part, or ``text`` itself (the same object) if nothing marks a part.

    Example:
        >>> answer_region("<think>maybe [1]</think><answer> [2] </answer>", lambda part: "[" in part)
        '[2]'
    """
    start = text.rfind(_ANSWER_START)
    if start >= 0:
        start += len(_ANSWER_START)
        end = text.find(_ANSWER_END, start)
        region = text[start:] if end < 0 else text[start:end]
        if has_answer(region):
            return region.strip()
    return text.rpartition(_THINK_END)[2].strip() if _THINK_END in text else text


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


class _Frame:
    """One open bracket: of an object its fields so far, of a list its scalars and its inner lists of scalars."""

    __slots__ = ("fields", "is_object", "key", "lists", "scalars")

    def __init__(self, is_object: bool) -> None:
        self.is_object = is_object
        self.key: str | None = None
        self.fields: dict[str, Any] = {}
        self.scalars: list[Any] = []
        self.lists: list[list[Any]] = []

    def add(self, value: Any) -> None:
        """Add a scalar: in an object, names and values alternate."""
        if not self.is_object:
            self.scalars.append(value)
        elif self.key is None:
            self.key = str(value)
        else:
            self.fields[self.key] = value
            self.key = None


def scan(text: str) -> Iterator[dict[str, Any] | list[Any]]:
    r"""Yield every object and every list of scalars that no object holds, each when it is complete.

    Args:
        text: anything.

    Yields:
        An object as a dict, whose values are texts, floats, None, or a list that holds lists of scalars; a list of
        scalars as a flat list. Words outside quotes (``true``, ``NaN``) are texts. Of two fields with one name the
        later one counts. An object that the text's end cuts off is not yielded.

    Example:
        >>> list(scan("Sure! [{'bbox': [1, 2, 3, 4], 'label': 'a man's hat'}, {'bbox': [5, 6"))
        [{'bbox': [[1.0, 2.0, 3.0, 4.0]], 'label': "a man's hat"}]
        >>> list(scan("[[1, 2, 3, 4], [5, 6, 7, 8]]"))
        [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]
    """
    stack: deque[_Frame] = deque(maxlen=DEPTH)
    position = 0
    # Outside all brackets there is only prose, where quotes mean nothing: skip it.
    while bracket := _BRACKET.search(text, position):
        for token in _TOKEN.finditer(text, bracket.start()):
            kind = token.lastgroup or ""
            if kind == "open":
                stack.append(_Frame(is_object=token[0] == "{"))
            elif kind == "close":
                yield from _close(stack, is_object=token[0] == "}")
            else:
                stack[-1].add(_scalar(kind, token[kind]))
            if not stack:
                position = token.end()
                break
        else:
            break
    # The text ended inside brackets: what is complete in an open list counts, what is inside an open object does not.
    for frame in takewhile(lambda frame: not frame.is_object, stack):
        yield from frame.lists


def _close(stack: deque[_Frame], is_object: bool) -> Iterator[dict[str, Any] | list[Any]]:
    """Close the innermost bracket, and with it one that was left open inside; a stray bracket closes nothing."""
    if stack[-1].is_object == is_object:
        yield from _pop(stack)
    elif len(stack) > 1 and stack[-2].is_object == is_object:
        yield from _pop(stack)
        yield from _pop(stack)


def _pop(stack: deque[_Frame]) -> Iterator[dict[str, Any] | list[Any]]:
    """Take the innermost bracket off the stack: to its parent where it is a value there, else out."""
    frame = stack.pop()
    parent = stack[-1] if stack else None
    if frame.is_object:
        if parent is not None:
            parent.key = None
        yield frame.fields
        return
    lists = [*frame.lists, frame.scalars] if frame.scalars else frame.lists
    if parent is None or (parent.is_object and parent.key is None):
        yield from lists
    elif parent.is_object:
        parent.add(lists)
    else:
        # Nesting is taken off here. A box moves up at most DEPTH times.
        parent.lists += lists


def _scalar(kind: str, raw: str) -> Any:
    """The value of a token: a float, None, or a text with its escapes resolved."""
    if kind == "number":
        return float(raw)
    if kind == "word":
        return None if raw in ("null", "None") else raw
    if "\\" not in raw:
        return raw
    try:
        return json.loads(f'"{raw}"')
    except ValueError:
        return raw.replace("\\'", "'").replace('\\"', '"')
