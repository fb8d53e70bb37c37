"""A scanner that finds objects and lists of numbers in text that should be JSON but may be faulty.

It never raises, has no recursion, takes linear time and stores at most `DEPTH` open brackets, whatever the text. It
does not know boxes and labels; `json_boxes` does.
"""

import json
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile

NUMBER = r"[-+]?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][-+]?+[0-9]++)?+"
"""Pattern of a decimal number. Every quantifier is possessive: no backtracking, whatever the text."""

DEPTH = 64
"""Largest number of open brackets; deeper nesting drops the outermost ones, which cannot belong to an answer."""


def _quoted(name: str, quote: str) -> str:
    """A pattern of a text in quotes, some of which may be lost.

    A quote ends a text only before a character that may follow one, so that apostrophes and inner quotes are part of
    it. A text goes on over a line end if its closing quote follows before any bracket. It does not go on over the start
    of an object or a quoted name of a field: its closing quote was lost, and it is not closed.
    """
    return (
        rf"{quote}(?P<{name}>(?:[^{quote}\\\n{{]++|\\[^\n]|\{{(?!\s*+[\"']?+\w++[\"']?+\s*+:)"
        rf"|{quote}(?!\s*+(?:[,:}}\]]|\Z)|\w++{quote}?+\s*+:)"
        rf"|\n[^{quote}\\{{}}\[\]]*+(?={quote}\s*+(?:[,}}\]]|\Z)))*+)"
        rf"(?P<{name}_closed>{quote}(?=\s*+(?:[,:}}\]]|\Z))(?P<{name}_is_name>\s*+:)?+|\\?+(?=\n\s*+[,}}\]]))?+"
    )


_BRACKETS = r"(?P<open>[\[{])|(?P<close>[\]}])"
_BARE = rf"(?P<name>[^\W\d]\w*+)[\"']?+\s*+:|(?P<number>{NUMBER})|(?P<word>-?+[^\W\d]\w*+)"
_TOKEN = re.compile(rf"{_BRACKETS}|{_quoted('double', chr(34))}|{_quoted('single', chr(39))}|{_BARE}")
# Inside a text whose closing quote was lost, quotes mean nothing.
_UNQUOTED_TOKEN = re.compile(f"{_BRACKETS}|{_BARE}")
_VALID_TOKEN = re.compile(
    rf'{_BRACKETS}|"(?P<double>(?:[^"\\]++|\\.)*+)(?P<double_closed>"(?P<double_is_name>\s*+:)?+)|{_BARE}', re.DOTALL
)
_UNCLOSED_NAME = re.compile(r"[\"'](?P<name>\w++)[\"']?+\s*+:")
_BRACKET = re.compile(r"[\[{]")


@dataclass(slots=True)
class Scalar:
    """A number, a text or None, and where it is in the text, without its quotes."""

    value: float | str | None
    start: int
    end: int


@dataclass(slots=True)
class Scalars:
    """A list of scalars, where it is, brackets included, and where the list around it starts (its own start if none).

    ``name`` is the one text beside a single inner list: of ``["cat", [1, 2, 3, 4]]`` the list of numbers has it.
    """

    items: list[Scalar]
    start: int
    end: int
    around: int
    name: Scalar | None = None


@dataclass(slots=True)
class Fields:
    """An object: its fields, where it is, braces included, and what is wrong with it.

    Attributes:
        values: by name a scalar, a list of lists of scalars, or an object of numbers only.
        start: position of its first character.
        end: position after its last character.
        in_step: names and values alternate, and every text is closed.
        repeated: names that occur more than once; the last value counts.
    """

    values: dict[str, "Scalar | list[Scalars] | Fields"]
    start: int
    end: int
    in_step: bool = True
    repeated: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Frame:
    """One open bracket: of an object its fields so far, of a list its scalars and its inner lists of scalars."""

    is_object: bool
    start: int
    key: str | None = None
    last: str | None = None
    values: dict[str, Scalar | list[Scalars] | Fields] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)
    in_step: bool = True
    scalars: list[Scalar] = field(default_factory=list)
    lists: list[Scalars] = field(default_factory=list)
    has_objects: bool = False

    def give(self, value: Scalar | list[Scalars] | Fields) -> None:
        """The value of the field whose name was read last."""
        assert self.key is not None
        if self.key in self.values:
            self.repeated.add(self.key)
        self.values[self.key] = value
        self.key, self.last = None, self.key

    def continues(self, number: Scalar) -> bool:
        """Whether a number continues the value before it, which is then a list that lost its bracket."""
        before = None if self.last is None else self.values[self.last]
        if isinstance(before, Scalar) and isinstance(before.value, float):
            before = [Scalars([before], before.start, before.end, before.start)]
            self.values[self.last or ""] = before
        elif not self.is_run:
            return False
        assert isinstance(before, list)
        before[0].items.append(number)
        before[0].end = number.end
        return True

    def lose(self) -> None:
        """A text was not closed: it is no value."""
        self.key = self.last = None
        self.in_step = False

    @property
    def is_run(self) -> bool:
        """Whether the value before is a list that lost its opening bracket."""
        before = None if self.last is None else self.values[self.last]
        return isinstance(before, list) and len(before) == 1 and before[0].start == before[0].items[0].start


def scan(text: str, valid: bool = False) -> Iterator[Fields | Scalars]:
    r"""Yield every object, and every list of scalars that no object holds, each when it is complete.

    An object whose bracket was lost ends where the next one starts, or starts at its first name. An object that holds
    numbers only and is the value of a field is part of the object around it.

    Args:
        text: anything.
        valid: the text is valid JSON (line ends in texts aside): quotes are what they seem.

    Yields:
        Objects and lists, in which words outside quotes (``true``, ``NaN``) are texts and nested lists are one list of
        lists. An object that the text's end cuts off is not yielded.

    Example:
        >>> [found] = scan("Sure! [{'bbox': [1, 2], 'label': 'a man's hat'}, {'bbox': [5, 6")
        >>> found.values["label"], found.in_step
        (Scalar(value="a man's hat", start=34, end=45), True)
        >>> [[scalar.value for scalar in found.items] for found in scan("[[1, 2, 3, 4], [5, 6, 7, 8]]")]
        [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]
    """
    scanner = _Scanner()
    for token in _tokens(text, valid, scanner.stack):
        scanner.take(token)
        yield from scanner.complete
        scanner.complete.clear()
    # The text ended inside brackets: what is complete in an open list counts, what is inside an open object does not.
    for frame in takewhile(lambda frame: not frame.is_object, scanner.stack):
        yield from frame.lists


def _tokens(text: str, valid: bool, stack: deque[_Frame]) -> Iterator[re.Match[str]]:
    """All tokens inside brackets; the name of a token's last group is its kind."""
    pattern = _VALID_TOKEN if valid else _TOKEN
    position = unclosed_until = 0
    while True:
        if not stack:
            # Outside all brackets there is only prose, where quotes mean nothing: skip it.
            bracket = _BRACKET.search(text, position)
            if bracket is None:
                return
            position = bracket.start()
        if position < unclosed_until:
            token = _UNQUOTED_TOKEN.search(text, position, unclosed_until)
            if token is None:
                position = unclosed_until
                continue
        elif (token := pattern.search(text, position)) is None:
            return
        position = token.end()
        if token.lastgroup in ("double", "single"):
            # Its closing quote was lost: it is the name of a field, or its quote alone is a token.
            unclosed_until, position = token.end(), token.start() + 1
            if name := _UNCLOSED_NAME.match(text, token.start()):
                token, position = name, name.end()
        yield token


class _Scanner:
    """Builds objects and lists from tokens.

    Attributes:
        stack: the open brackets.
        complete: objects and lists that are complete and have not been yielded.
    """

    def __init__(self) -> None:
        self.stack: deque[_Frame] = deque(maxlen=DEPTH)
        self.complete: list[Fields | Scalars] = []

    def take(self, token: re.Match[str]) -> None:
        """Take the next token."""
        kind = token.lastgroup or ""
        if kind == "open":
            self._open(token[0] == "{", token.start())
        elif kind == "close":
            self._close(token[0] == "}", token.end())
        elif kind == "name":
            self._name(token["name"], token.start())
        elif kind in ("double", "single"):
            self.stack[-1].lose()
        elif kind in ("number", "word"):
            self._add(Scalar(_value(kind, token[0]), *token.span()))
        else:
            quotes = kind.removesuffix("_closed")
            if token[f"{quotes}_is_name"] is not None:
                self._name(_unescaped(token[quotes]), token.start())
            else:
                self._add(Scalar(_unescaped(token[quotes]), *token.span(quotes)))

    def _open(self, is_object: bool, start: int) -> None:
        if is_object and self.stack:
            # An object starts where a name should: the bracket of the one before was lost, and perhaps its list's.
            if not self.stack[-1].is_object and self._is_value() and self.stack[-1].scalars:
                self._pop(start)
            if self.stack[-1].is_object and self.stack[-1].key is None:
                self._pop(start)
        self.stack.append(_Frame(is_object=is_object, start=start))

    def _close(self, is_object: bool, end: int) -> None:
        """Close the innermost bracket, and with it one that was left open inside; a stray bracket closes nothing."""
        top = self.stack[-1]
        if top.is_object == is_object:
            self._pop(end)
        elif top.is_object and top.is_run:
            top.last = None
        elif len(self.stack) > 1 and self.stack[-2].is_object == is_object:
            self._pop(end - 1)
            self._pop(end)

    def _name(self, name: str, start: int) -> None:
        """The name of a field; in a list, the list was not closed, or the object was not opened."""
        while not self.stack[-1].is_object:
            if self._is_value() and not self.stack[-1].has_objects:
                self._pop(start)
            else:
                self.stack.append(_Frame(is_object=True, start=start))
        frame = self.stack[-1]
        if frame.key not in (None, name):
            # The value of the name before was lost.
            frame.in_step = False
        frame.key = name

    def _is_value(self) -> bool:
        """Whether the innermost bracket is the value of a field."""
        return len(self.stack) > 1 and self.stack[-2].is_object

    def _add(self, scalar: Scalar) -> None:
        frame = self.stack[-1]
        if not frame.is_object:
            frame.scalars.append(scalar)
        elif frame.key is not None:
            frame.give(scalar)
        elif not (isinstance(scalar.value, float) and frame.continues(scalar)):
            frame.in_step = False

    def _pop(self, end: int) -> None:
        """Take the innermost bracket off the stack: to its parent where it is a value there, else out."""
        frame = self.stack.pop()
        parent = self.stack[-1] if self.stack else None
        if frame.is_object:
            self._complete_object(frame, parent, end)
            return
        around = frame.start if parent is None or parent.is_object else parent.start
        own = [Scalars(frame.scalars, frame.start, end, around)] if frame.scalars else []
        if own and len(frame.lists) == len(frame.scalars) == 1 and isinstance(frame.scalars[0].value, str):
            own, frame.lists[0].name = [], frame.scalars[0]
        lists = frame.lists + own
        if parent is None or (parent.is_object and parent.key is None):
            self.complete += lists
        elif parent.is_object:
            parent.give(lists)
        else:
            # Nesting is taken off here. A box moves up at most DEPTH times.
            parent.lists += lists

    def _complete_object(self, frame: _Frame, parent: _Frame | None, end: int) -> None:
        found = Fields(frame.values, frame.start, end, frame.in_step, frozenset(frame.repeated))
        if parent is not None and parent.is_object and parent.key is not None:
            if frame.values and all(_is_number(value) for value in frame.values.values()):
                parent.give(found)
                return
            parent.key = None
        elif parent is not None:
            parent.has_objects = True
        self.complete.append(found)


def _is_number(value: object) -> bool:
    return isinstance(value, Scalar) and isinstance(value.value, float)


def _value(kind: str, raw: str) -> float | str | None:
    """The value of a number or a word."""
    if kind == "number":
        return float(raw)
    return None if raw in ("null", "None") else raw


def _unescaped(raw: str) -> str:
    """A text with its escapes resolved."""
    if "\\" not in raw:
        return raw
    try:
        return str(json.loads(f'"{raw}"', strict=False))
    except ValueError:
        return raw.replace("\\'", "'").replace('\\"', '"')
