"""Collects what is wrong with a data set, so that a user sees all of it at once; checks of the fields of JSON."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vr1.errors import UserError

BadRecords = Literal["error", "skip"]
SHOWN = 5
"""How many records of each kind an error names; `vr1 check` lists all of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One fault in a data set.

    Attributes:
        kind: what is wrong, such as ``box of zero size``.
        where: the record that has it.
        image: file name of the image that it concerns; empty where that is not known.
    """

    kind: str
    where: str
    image: str = ""


class Problems:
    """Faults of one data set, in the order in which they were found.

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
        self._problems: list[Problem] = []

    def add(self, kind: str, where: str, image: str = "") -> None:
        """Add one fault: its kind, the record that has it, and the file name of its image where that is known."""
        self._problems.append(Problem(kind=kind, where=where, image=image))

    def filter(self, condition: Callable[[Problem], bool]) -> "Problems":
        """The faults for which a condition holds."""
        chosen = Problems(self.source)
        chosen._problems = [problem for problem in self if condition(problem)]
        return chosen

    def __len__(self) -> int:
        return len(self._problems)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._problems)

    @property
    def by_kind(self) -> dict[str, list[str]]:
        """The records at fault, by kind of fault."""
        kinds: dict[str, list[str]] = {}
        for problem in self:
            kinds.setdefault(problem.kind, []).append(problem.where)
        return kinds

    def __str__(self) -> str:
        """One line a kind: its count and the first few records."""
        lines = [f"{self.source}: {len(self)} problem{'s' if len(self) != 1 else ''}"]
        for kind, where in self.by_kind.items():
            more = f"; and {len(where) - SHOWN} more" if len(where) > SHOWN else ""
            lines.append(f"  {kind}: {len(where)} ({'; '.join(where[:SHOWN])}{more})")
        return "\n".join(lines)


class FaultyRecordsError(UserError):
    """Records of a data set cannot be used: the message names the first few of each kind, ``problems`` has them all."""

    def __init__(self, problems: Problems) -> None:
        super().__init__(f"{problems}\nFix the data, or set bad_records: skip to leave these out.")
        self.problems = problems


class LostObjects:
    """Images that are left out since one of their objects is faulty: without it they would teach a half truth.

    Example:
        >>> lost = LostObjects()
        >>> lost.add("a.jpg", 3)
        >>> lost.notes()
        ['1 images with a faulty annotation are left out, with their 3 other objects (a.jpg)']
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._objects = 0

    def add(self, image: str, objects: int) -> None:
        """An image that is left out, and the number of its objects without a fault."""
        self._names.append(image)
        self._objects += objects

    def notes(self) -> list[str]:
        """What a reader of the data should know."""
        if not self._names:
            return []
        names = ", ".join(self._names[:SHOWN]) + (", ..." if len(self._names) > SHOWN else "")
        return [
            f"{len(self._names)} images with a faulty annotation are left out, with their {self._objects} other objects"
            f" ({names})"
        ]


def check_bad_records(value: str) -> None:
    """Check the setting ``bad_records``.

    Raises:
        UserError: it is neither ``error`` nor ``skip``.
    """
    if value not in ("error", "skip"):
        raise UserError(f"data.bad_records={value!r}: choose error or skip")


def field_fault(item: Any, what: str, fields: Mapping[str, Callable[[Any], bool]]) -> str | None:
    """The first thing wrong with the fields of ``item``, or None.

    Args:
        item: what the file holds in this place.
        what: what it should be, for the message.
        fields: the check of each field that it needs.

    Example:
        >>> field_fault({"id": 1}, "image", {"id": is_id, "file_name": is_text})
        "image without 'file_name'"
        >>> field_fault({"id": None}, "image", {"id": is_id})
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


def is_number(value: Any) -> bool:
    """Any number, NaN and infinity included; JSON's true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(value: Any) -> float | None:
    """A number, also one written as text; None for anything else.

    Example:
        >>> number(" 12.5"), number(3), number("3 px"), number(True)
        (12.5, 3, None, None)
    """
    if is_number(value):
        return value
    try:
        # Digit groups and the like are no numbers of a data set.
        return float(value) if isinstance(value, str) and "_" not in value else None
    except ValueError:
        return None


def numbers(value: Any, count: int) -> list[float] | None:
    """A list of ``count`` numbers, some of them perhaps written as text; None for anything else."""
    if not isinstance(value, list) or len(value) != count:
        return None
    found = [number(item) for item in value]
    return None if None in found else found  # type: ignore[return-value]


def identifier(value: Any) -> int | str | None:
    """An id: a whole number, also one written as text, or another text; None for anything else.

    Example:
        >>> identifier("0012"), identifier(12.0), identifier("img-12"), identifier(None), identifier(1.5)
        (12, 12, 'img-12', None, None)
    """
    if type(value) is int:  # as a million of them are
        return value
    if isinstance(value, str):
        text = value.strip()
        return int(text) if re.fullmatch(r"-?[0-9]+", text) else text or None
    if not is_number(value) or not math.isfinite(value) or value != int(value):
        return None
    return int(value)


def side(value: Any) -> int | None:
    """The width or height of an image: a whole number of pixels from 1, written ``640``, ``640.0`` or as text.

    Example:
        >>> side(640.0), side("640"), side(0), side(12.5)
        (640, 640, None, None)
    """
    found = number(value)
    if found is None or not math.isfinite(found) or found < 1 or found != int(found):
        return None
    return int(found)


def is_area(value: Any) -> bool:
    """A finite number from 0, perhaps written as text, or null for unknown."""
    found = number(value)
    return value is None or (found is not None and math.isfinite(found) and found >= 0)


def is_id(value: Any) -> bool:
    """An id; see `identifier`."""
    return identifier(value) is not None


def is_text(value: Any) -> bool:
    """A text with something in it."""
    return isinstance(value, str) and bool(value.strip())


def is_side(value: Any) -> bool:
    """The width or height of an image; see `side`."""
    return side(value) is not None
