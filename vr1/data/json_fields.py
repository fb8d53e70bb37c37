"""Checks the fields of objects that came out of a JSON file, for error messages that name the field."""

import math
from collections.abc import Callable, Mapping
from typing import Any


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
