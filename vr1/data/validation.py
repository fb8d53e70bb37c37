"""Collects what is wrong with a data set, so that a user hears of all of it at once."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from vr1.errors import UserError

SHOWN = 5


class Problems:
    """Faults found in one data set, by kind, in the order in which they were found.

    Example:
        >>> problems = Problems("train.json")
        >>> problems.add("box of zero size", "annotation 7 on a.jpg")
        >>> problems.add("box of zero size", "annotation 9 on b.jpg")
        >>> len(problems)
        2
        >>> print(problems)
        train.json: 2 problems
          box of zero size: 2 (annotation 7 on a.jpg; annotation 9 on b.jpg)
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._found: dict[str, list[str]] = {}

    def add(self, kind: str, where: str) -> None:
        """Note one fault: its kind, and the record that has it."""
        self._found.setdefault(kind, []).append(where)

    def __len__(self) -> int:
        return sum(len(where) for where in self._found.values())

    @property
    def by_kind(self) -> Mapping[str, list[str]]:
        """The records at fault, by kind of fault."""
        return MappingProxyType(self._found)

    def __str__(self) -> str:
        """One line a kind: its count and the first few records."""
        lines = [f"{self.source}: {len(self)} problem{'s' if len(self) != 1 else ''}"]
        for kind, where in self._found.items():
            more = f"; and {len(where) - SHOWN} more" if len(where) > SHOWN else ""
            lines.append(f"  {kind}: {len(where)} ({'; '.join(where[:SHOWN])}{more})")
        return "\n".join(lines)


class FaultyRecordsError(UserError):
    """Records of a data set cannot be used: the message names the first few of each kind, ``problems`` all of them."""

    def __init__(self, problems: Problems) -> None:
        super().__init__(f"{problems}\nMend the data, or set bad_records: skip to leave these out.")
        self.problems = problems


def field_fault(item: Any, what: str, fields: Mapping[str, Callable[[Any], bool]]) -> str | None:
    """The first thing wrong with the fields of ``item``, or None.

    Args:
        item: what the file holds in this place.
        what: what it should be, for the message.
        fields: the check of each field that it needs.

    Example:
        >>> field_fault({"id": 1}, "image", {"id": is_int, "file_name": is_text})
        "image without 'file_name'"
        >>> field_fault({"id": "one"}, "image", {"id": is_int})
        "image whose 'id' is unusable"
    """
    if not isinstance(item, dict):
        return f"{what} that is no JSON object"
    for field, is_right in fields.items():
        if field not in item:
            return f"{what} without {field!r}"
        if not is_right(item[field]):
            return f"{what} whose {field!r} is unusable"
    return None


def has_id(item: Any) -> bool:
    """An object with a whole-number ``id``."""
    return isinstance(item, dict) and is_int(item.get("id"))


def is_int(value: Any) -> bool:
    """A whole number; JSON's true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Any number, NaN and infinity included."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_area(value: Any) -> bool:
    """A finite number from 0, or null for unknown."""
    return value is None or (is_number(value) and math.isfinite(value) and value >= 0)


def is_text(value: Any) -> bool:
    """A text with something in it."""
    return isinstance(value, str) and bool(value.strip())


def is_side(value: Any) -> bool:
    """The width or height of an image: a whole number of pixels from 1, written ``640`` or ``640.0``."""
    return is_number(value) and math.isfinite(value) and value >= 1 and value == int(value)


def is_box(value: Any) -> bool:
    """A list of four numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))
