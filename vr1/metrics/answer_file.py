"""Files of recorded answers: one JSON object a line, written by evaluations, read by ``score`` and on resume.

Shape letter: M ground-truth boxes.
"""

import codecs
import contextlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from vr1.errors import UserError
from vr1.metrics.evaluation import Evaluated
from vr1.types import Boxes, DetectionRecord, Detections, Targets, as_boxes

Question = tuple[str, int, str, str, tuple[int, int]]
"""Set, image id, image, wording, and size of the model's input: what has to be equal for an answer to be that."""

_FIELDS = ("set", "image_id", "image", "instruction", "input_size", "completion", "scores")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """An answer as it was written.

    Attributes:
        completion: its text.
        scores: one for each box that was read from it; None gives them all the constant one.
    """

    completion: str
    scores: tuple[float, ...] | None = None


def question_of(record: DetectionRecord, instruction: str, input_size: tuple[int, int]) -> Question:
    """What tells the question about a record from all others."""
    return (record.set_name, record.image_id, image_name(record), instruction, input_size)


def image_name(record: DetectionRecord) -> str:
    """The image of a record, without the file and line of the question: several may be about one image."""
    return record.origin.rpartition("]: ")[2]


def recorded_answers(path: Path) -> dict[Question, Answered]:
    """The answers of a file of lines as an evaluation writes them, each question's first."""
    answers: dict[Question, Answered] = {}
    for _, row in whole_lines([path]):
        width, height = row["input_size"]
        question = (row["set"], row["image_id"], row["image"], row["instruction"], (width, height))
        answers.setdefault(question, Answered(completion=row["completion"], scores=tuple(row["scores"])))
    return answers


def whole_lines(paths: Iterable[Path]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    r"""The lines of files that are complete answers, as they stand and read; a file that is missing has none.

    A process that is killed leaves a line that ends in the middle, a machine that goes down perhaps a block of zeros.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "answers.jsonl")
        >>> row = dict.fromkeys(_FIELDS, 0)
        >>> _ = file.write_text(json.dumps(row) + "\n" + json.dumps(row)[:20])
        >>> len(list(whole_lines([file])))
        1
    """
    for path in paths:
        if not path.is_file():
            continue
        with path.open("rb") as file:
            for line in file:
                try:
                    row = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    continue
                if isinstance(row, dict) and all(name in row for name in _FIELDS):
                    yield line, row


KEYS = ("completion", "boxes_xyxy", "labels", "image_size", "input_size")

_LARGEST = 1e7


class InputError(UserError):
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
        vr1.metrics.answer_file.InputError: ...answers.jsonl:1: no "boxes_xyxy"; a line needs completion, ...
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


def answer_row(
    record: DetectionRecord, detections: Detections, completion: str, instruction: str, input_size: tuple[int, int]
) -> dict[str, Any]:
    """One answer as a JSON object, ground truth and all.

    ``boxes_xyxy``, ``labels`` and ``areas`` are the true objects, ``crowd`` lists crowd regions apart, ``scores`` are
    those of the boxes that were read, which ``read`` repeats.
    """
    objects, crowd = np.flatnonzero(~record.crowd), np.flatnonzero(record.crowd)
    return {
        "set": record.set_name,
        "image": image_name(record),
        "image_id": record.image_id,
        "image_size": list(record.image_size),
        "input_size": list(input_size),
        "instruction": instruction,
        "categories": list(record.categories),
        "completion": completion,
        "read": {"boxes_xyxy": detections.boxes_xyxy.tolist(), "labels": list(detections.labels)},
        "scores": [float(score) for score in detections.scores],
        "boxes_xyxy": record.boxes_xyxy[objects].tolist(),
        "labels": [record.labels[row] for row in objects],
        "areas": record.areas[objects].tolist(),
        "crowd": [
            {"box_xyxy": record.boxes_xyxy[row].tolist(), "label": record.labels[row], "area": float(record.areas[row])}
            for row in crowd
        ],
    }


def read_row(fields: dict[str, Any], number: int) -> Evaluated:
    """The evaluated answer of a line that `answer_row` made; its completion is not read again."""
    read = fields["read"]
    found = Detections(
        boxes_xyxy=as_boxes(read["boxes_xyxy"]),
        labels=tuple(read["labels"]),
        scores=np.asarray(fields["scores"], np.float64),
        well_formed=True,
        valid=True,
    )
    targets = Targets(boxes_xyxy=as_boxes(fields["boxes_xyxy"]), labels=tuple(fields["labels"]))
    width, height = fields["image_size"]
    return evaluated_row(fields, number, targets, found, (width, height))


def evaluated_row(
    fields: dict[str, Any],
    number: int,
    targets: Targets,
    detections: Detections,
    image_size: tuple[int, int],
) -> Evaluated:
    """The evaluated answer of a line.

    Args:
        fields: what the line holds. Of ``set``, ``image``, ``image_id``, ``categories``, ``areas``, ``crowd`` and
            ``scores``, each may be missing.
        number: number of the line, taken for its image's id where it gives none.
        targets: its true objects.
        detections: what was read from its completion.
        image_size: width and height of its image in pixels.

    Raises:
        UserError: if a field is not what it should be.
    """
    crowd = _list(fields, "crowd", [])
    if not all(isinstance(item, dict) and {"box_xyxy", "label"} <= item.keys() for item in crowd):
        raise UserError('"crowd" is no list of {"box_xyxy", "label"}; write one object for each crowd region')
    boxes = np.concatenate([targets.boxes_xyxy, box_array([item["box_xyxy"] for item in crowd], "crowd")])
    sizes = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).tolist()
    areas = _numbers(_list(fields, "areas", sizes[: len(targets)]), "areas", least=0.0)
    crowd_sizes = zip(crowd, sizes[len(targets) :], strict=True)
    crowd_areas = _numbers([item.get("area", size) for item, size in crowd_sizes], "crowd", least=0.0)
    if len(areas) != len(targets):
        raise UserError(f'{len(areas)} in "areas" but {len(targets)} in "boxes_xyxy"; write one area for each box')
    scores = _numbers(_list(fields, "scores", []), "scores")
    categories = _list(fields, "categories", [])
    if not all(isinstance(name, str) for name in categories):
        raise UserError('"categories" has something that is no text; write the names that were asked for')
    image_id = fields.get("image_id", number)
    if type(image_id) is not int:
        raise UserError('"image_id" is no whole number; write one, or leave it out')
    return Evaluated(
        set_name=str(fields.get("set", "")),
        image_id=image_id,
        image=str(fields.get("image") or f"line {number}"),
        image_size=image_size,
        categories=tuple(categories),
        boxes=detections.boxes_xyxy,
        labels=detections.labels,
        # A file that was scored with another grammar gives scores of other boxes.
        scores=np.asarray(scores, np.float64) if len(scores) == len(detections) else detections.scores,
        true_boxes=boxes,
        true_labels=(*targets.labels, *(str(item["label"]) for item in crowd)),
        areas=np.asarray([*areas, *crowd_areas], np.float64),
        crowd=np.arange(len(boxes)) >= len(targets),
    )


def _list(fields: dict[str, Any], name: str, default: list[Any]) -> list[Any]:
    value = fields.get(name, default)
    if not isinstance(value, list):
        raise UserError(f'"{name}" is no list; write one, or leave it out')
    return value


def _numbers(values: list[Any], name: str, least: float = -math.inf) -> list[float]:
    if not all(type(value) in (int, float) and least <= value < math.inf for value in values):
        above = "" if least == -math.inf else f" from {least:g}"
        raise UserError(f'"{name}" has something that is no finite number{above}; write one for each box')
    return values
