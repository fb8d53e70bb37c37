"""Reads files of recorded answers: one JSON object a line, checked before anything is computed with it.

Shape letter: M ground-truth boxes.
"""

import codecs
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from vr1.records import Boxes, Targets, as_boxes

KEYS = ("completion", "boxes_xyxy", "labels", "image_size", "input_size")

_LARGEST = 1e7


class InputError(ValueError):
    """A file or a line that is not what it should be. The message names it and the mend."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AnswerLine:
    """One recorded answer and what it should have found.

    Attributes:
        text: the line as it was read.
        fields: what it holds, fields that are not used here included.
        completion: the answer as the model wrote it.
        targets: M true boxes in pixels of the image.
        image_size: width and height of the image in pixels.
        input_size: width and height of the model's input in pixels.
        end: position in the file behind this line, in bytes.
    """

    text: str
    fields: dict[str, Any]
    completion: str
    targets: Targets
    image_size: tuple[int, int]
    input_size: tuple[int, int]
    end: int


def read_answer_lines(path: Path) -> Iterator[AnswerLine]:
    """Yield the answers of a file one by one; blank lines are passed over.

    Args:
        path: a file of lines ``{"completion": text, "boxes_xyxy": [[x1, y1, x2, y2], ...], "labels": [text, ...],
            "image_size": [w, h], "input_size": [w, h]}``, encoded in UTF-8.

    Raises:
        InputError: at the first line that is wrong.
        OSError: if the file cannot be read.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "answers.jsonl"
        >>> _ = file.write_text('{"completion": "[]"}')
        >>> next(read_answer_lines(file))
        Traceback (most recent call last):
            ...
        vr1.answer_lines.InputError: ...answers.jsonl:1: no "boxes_xyxy"; a line needs completion, boxes_xyxy, ...
    """
    end = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            end += len(raw)
            raw = raw.removeprefix(codecs.BOM_UTF8).strip() if number == 1 else raw.strip()
            if not raw:
                continue
            try:
                yield _parse(raw, end)
            except InputError as error:
                raise InputError(f"{path}:{number}: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's fields, each given once."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise InputError(f'"{double}" is given twice; give each field once')
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _parse(raw: bytes, end: int) -> AnswerLine:
    """Check one line. The errors name no file yet."""
    try:
        text = raw.decode()
        fields = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 (byte {error.start} of the line); write the file in UTF-8") from None
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({str(error) or 'too deep'}); write one JSON object a line") from None
    if not isinstance(fields, dict):
        raise InputError(f"a {type(fields).__name__} instead of an object; write one JSON object a line")
    for key in KEYS:
        if key not in fields:
            raise InputError(f'no "{key}"; a line needs {", ".join(KEYS)}')
    if not isinstance(fields["completion"], str):
        raise InputError('"completion" is no text; give the answer as the model wrote it')
    return AnswerLine(
        text=text,
        fields=fields,
        completion=fields["completion"],
        targets=_targets(fields["boxes_xyxy"], fields["labels"]),
        image_size=_size(fields, "image_size"),
        input_size=_size(fields, "input_size"),
        end=end,
    )


def _targets(boxes: Any, labels: Any) -> Targets:
    """True boxes and their labels."""
    if not isinstance(boxes, list):
        raise InputError('"boxes_xyxy" is no list; write [[x1, y1, x2, y2], ...], or [] for an image without an object')
    if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise InputError('"labels" is no list of texts; write one label for each box')
    if len(boxes) != len(labels):
        raise InputError(f'{len(boxes)} in "boxes_xyxy" but {len(labels)} in "labels"; write one label for each box')
    return Targets(boxes_xyxy=box_array(boxes, "boxes_xyxy"), labels=tuple(labels))


def box_array(boxes: list[Any], name: str) -> Boxes:
    """Boxes of a field as an array ``[M, 4]``, checked as a whole first, then one by one to name the wrong one.

    Raises:
        InputError: if one is not two ordered corners in pixels.
    """
    if {*map(type, boxes)} <= {list} and {*map(len, boxes)} <= {4} and {*map(type, chain(*boxes))} <= {int, float}:
        with contextlib.suppress(OverflowError):
            array = as_boxes(boxes)
            if (np.abs(array) <= _LARGEST).all() and (array[:, :2] <= array[:, 2:]).all():
                return array
    for index, box in enumerate(boxes):
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_pixel, box))):
            raise InputError(f'"{name}"[{index}] is not four finite numbers; write [x1, y1, x2, y2] in image pixels')
        if box[0] > box[2] or box[1] > box[3]:
            raise InputError(
                f'"{name}"[{index}] = {box} has x2 < x1 or y2 < y1; write two corners, not a corner and a size'
            )
    raise AssertionError(boxes)


def _size(fields: dict[str, Any], key: str) -> tuple[int, int]:
    """Width and height."""
    size = fields[key]
    if not (isinstance(size, list) and len(size) == 2 and all(map(_is_pixel, size)) and min(size) > 0):
        raise InputError(f'"{key}" is not a width and a height above 0; write [width, height] in pixels')
    return size[0], size[1]


def _is_pixel(value: Any) -> bool:
    """A finite number of a size that pixels have."""
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST
