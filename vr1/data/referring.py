"""Referring expressions, each an image, a text and its box: reader and data module.

The reader understands the fields of RefCOCO slices, of VLM-R1's processed json and of its jsonl with conversations.
"""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vr1.data.annotated import AnnotatedDataModule
from vr1.data.annotations import AnnotationTable, TableBuilder, box_fault
from vr1.data.datamodule import MissingSplitError, Source, Split
from vr1.data.images import ImageError, image_size
from vr1.data.mixture import SetsSource
from vr1.data.question_text import parse_question
from vr1.data.validation import Problems, is_number, is_side, is_text
from vr1.errors import UserError

BoxFormat = Literal["xyxy", "xywh"]

_EXPRESSIONS = ("expression", "normal_caption", "caption", "problem", "prompt", "question")
_BOXES = ("bbox_xyxy", "solution", "bbox")


def read_referring(
    path: Path, images: Path, box_format: BoxFormat | None = None
) -> tuple[AnnotationTable, Problems, list[str]]:
    """Read a file of referring expressions. Every line is an image of the table, and its expression a category.

    Args:
        path: a ``.jsonl`` file, or a ``.json`` file that holds one list.
        images: the folder to which ``image`` is relative; sizes that the file does not give are read from the images.
        box_format: what ``bbox`` holds; ``bbox_xyxy`` and ``solution`` always hold corners.

    Returns:
        The table of the valid lines, the problems of the others, and notes on what was changed.

    Raises:
        UserError: if the file is missing or not JSON, or holds no list.
    """
    problems, builder = Problems(str(path)), TableBuilder(referring=True)
    sizes: dict[str, tuple[int, int]] = {}
    for where, item in _items(path, problems):
        if box_format is None and isinstance(item, dict) and _says_no_format(item):
            raise UserError(
                f"annotations={path}: {where} has a 'bbox', which may be two corners or a corner and a size; set "
                "box_format to xyxy or xywh"
            )
        fault = _add(item, images, box_format, builder, sizes)
        if fault is not None:
            problems.add(fault, where)
    return builder.table(), problems, builder.notes()


def _items(path: Path, problems: Problems) -> list[tuple[str, Any]]:
    if not path.is_file():
        raise UserError(f"annotations={path}: no such file; check the path")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix != ".jsonl" and text.lstrip().startswith("["):
            return [(f"[{number}]", item) for number, item in enumerate(json.loads(text))]
    except (ValueError, RecursionError) as error:
        raise UserError(f"annotations={path}: not JSON ({error}); download the file again") from error
    items = []
    # Not splitlines: JSON may hold the line separators of Unicode as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            items.append((f"line {number}", json.loads(line)))
        except (ValueError, RecursionError) as error:
            problems.add("line that is not JSON", f"line {number}: {error}")
    return items


def _add(
    item: Any, images: Path, box_format: BoxFormat | None, builder: TableBuilder, sizes: dict[str, tuple[int, int]]
) -> str | None:
    """Add one line to the table, or return what is wrong with it."""
    if not isinstance(item, dict):
        return "line that is no JSON object"
    name, text, box = _image(item), _expression(item), _box(item)
    if not is_text(name):
        return "line without an 'image'"
    if not text:
        return f"line without an expression ({', '.join(_EXPRESSIONS)} or conversations)"
    if box is None:
        return f"line without four numbers in {', '.join(_BOXES)} or the answer of its conversations"
    if box_format == "xywh" and _says_no_format(item):
        box = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    try:
        size = _size(item, images / name, sizes)
    except ImageError as error:
        return f"image that cannot be opened: {error}"
    fault = box_fault(box, size)
    if fault is None:
        builder.add_image(name, size)
        builder.add_object(text, box)
    return fault


def _says_no_format(item: dict[str, Any]) -> bool:
    return "bbox" in item and "bbox_xyxy" not in item and "solution" not in item


def _size(item: dict[str, Any], path: Path, sizes: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """Width and height as the line gives them, or as the image has them; several lines share an image."""
    if is_side(item.get("width")) and is_side(item.get("height")):
        return int(item["width"]), int(item["height"])
    key = str(path)
    if key not in sizes:
        sizes[key] = image_size(path)
    return sizes[key]


def _image(item: dict[str, Any]) -> Any:
    image = item.get("image", item.get("file_name"))
    return image[0] if isinstance(image, list) and len(image) == 1 else image


def _expression(item: dict[str, Any]) -> str:
    text = next((item[key] for key in _EXPRESSIONS if is_text(item.get(key))), _turn(item, 0))
    if not isinstance(text, str):
        return ""
    parsed = parse_question(text)
    if parsed is not None and len(parsed.categories) == 1:
        return parsed.categories[0]
    return " ".join(text.replace("<image>", " ").split())


def _box(item: dict[str, Any]) -> list[float] | None:
    value = next((item[key] for key in _BOXES if key in item), None)
    if value is None:
        value = _turn(item, 1)
    if isinstance(value, str):
        numbers = re.findall(r"-?\d+(?:\.\d+)?", re.sub(r"bbox_2d", "", value))
        value = [float(number) for number in numbers]
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if not (isinstance(value, list) and len(value) == 4 and all(map(is_number, value))):
        return None
    return [float(number) for number in value]


def _turn(item: dict[str, Any], number: int) -> Any:
    """The text of one turn of the conversations; None where there is none."""
    turns = item.get("conversations")
    turn = turns[number] if isinstance(turns, list) and len(turns) > number else None
    return turn.get("value") if isinstance(turn, dict) else None


class ReferringDataModule(AnnotatedDataModule):
    """Referring expressions (RefCOCO, RefCOCO+, RefCOCOg, or VLM-R1's files): one text, one box.

    Args:
        images: the folder to which the files' ``image`` is relative.
        train: files to train on, by name of the set.
        val: files to validate on.
        test: files to test and predict on; with the callback ``callbacks.Evaluation`` each is reported by its name.
        box_format: what a field named ``bbox`` holds, ``xyxy`` or ``xywh``; ``bbox_xyxy`` and ``solution`` are corners.
        settings: faulty records, selection and loading; see `AnnotatedDataModule` and `RecordDataModule`.
    """

    def __init__(
        self,
        images: Path,
        train: dict[str, Path] | None = None,
        val: dict[str, Path] | None = None,
        test: dict[str, Path] | None = None,
        box_format: BoxFormat | None = None,
        **settings: Any,
    ) -> None:
        # Each expression is a question of its own, and has one box.
        super().__init__(task="grounding", empty_images="keep", negatives=0.0, categories=None, **settings)
        if box_format not in (None, "xyxy", "xywh"):
            raise UserError(f"data.box_format={box_format!r} must be xyxy or xywh")
        self.images, self.box_format = Path(images), box_format
        self.files: dict[Split, dict[str, Path]] = {
            "train": train or {},
            "val": val or {},
            "test": test or {},
            "predict": test or {},
        }

    def read(self, split: Split) -> Source:
        """The expressions of one split; ``predict`` takes the test files.

        Raises:
            MissingSplitError: there is no file for the split.
            UserError: a file or an image is faulty.
        """
        if not self.files[split]:
            name = "test" if split == "predict" else split
            raise MissingSplitError(
                f"data.{name}: no file is named; name one, such as --data.{name} '{{refcoco_{name}: "
                f"refcoco_{name}.jsonl}}'"
            )
        read = partial(read_referring, images=self.images, box_format=self.box_format)
        return SetsSource({name: self.open(path, self.images, read=read) for name, path in self.files[split].items()})
