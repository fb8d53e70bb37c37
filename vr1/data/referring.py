"""Referring expressions, each an image, a text and its box: reader and data module.

Read are the fields of RefCOCO slices, of VLM-R1's processed json and of its jsonl with conversations.
"""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vr1.data.annotations import CocoTable, TableRows, box_fault
from vr1.data.datamodule import MissingSplitError, RecordDataModule, Source, Split
from vr1.data.dataset import CocoSource
from vr1.data.images import ImageError, image_size
from vr1.data.mixture import SetsSource
from vr1.data.questions import asked_for
from vr1.data.selection import Selection, select
from vr1.data.validation import Problems, is_number, is_side, is_text
from vr1.errors import UserError

BoxFormat = Literal["xyxy", "xywh"]

_EXPRESSIONS = ("expression", "normal_caption", "caption", "problem", "prompt", "question")
_BOXES = ("bbox_xyxy", "solution", "bbox")


def read_rec(path: Path, images: Path, box_format: BoxFormat | None = None) -> tuple[CocoTable, Problems, list[str]]:
    """Read a file of referring expressions. Every line is an image of the table, and its expression a category.

    Args:
        path: a ``.jsonl`` file, or a ``.json`` file that holds one list.
        images: the folder to which ``image`` is relative; looked into for sizes that the file does not give.
        box_format: what ``bbox`` holds; fields that say so themselves (``bbox_xyxy``, ``solution``) are corners.

    Returns:
        The table of the sound lines, the problems of the others, and notes on what was put right.

    Raises:
        UserError: if the file is missing or not JSON, or holds no list.
    """
    problems, rows = Problems(str(path)), TableRows()
    sizes: dict[str, tuple[int, int]] = {}
    for where, item in _items(path, problems):
        if box_format is None and isinstance(item, dict) and _says_no_format(item):
            raise UserError(
                f"annotations={path}: {where} has a 'bbox', which may be two corners or a corner and a size; set "
                "box_format to xyxy or xywh"
            )
        fault = _add(item, images, box_format, rows, sizes)
        if fault is not None:
            problems.add(fault, where)
    return rows.table(), problems, rows.notes()


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
    item: Any, images: Path, box_format: BoxFormat | None, rows: TableRows, sizes: dict[str, tuple[int, int]]
) -> str | None:
    """Add one line to the rows, or say what is wrong with it."""
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
        rows.add_image(name, size)
        rows.add_object(text, box)
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
    asked = asked_for(text)
    return asked[0] if asked and len(asked) == 1 else " ".join(text.replace("<image>", " ").split())


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
    """What was said at a turn of the conversations, where there are any."""
    turns = item.get("conversations")
    turn = turns[number] if isinstance(turns, list) and len(turns) > number else None
    return turn.get("value") if isinstance(turn, dict) else None


class RecDataModule(RecordDataModule):
    """Referring expressions (RefCOCO, RefCOCO+, RefCOCOg, or VLM-R1's files): one text, one box.

    Args:
        images: the folder to which the files' ``image`` is relative.
        train: files to train on, by name of the set.
        val: files to validate on.
        test: files to test and predict on; with the callback ``callbacks.Evaluation`` each is reported by its name.
        box_format: what a field named ``bbox`` holds, ``xyxy`` or ``xywh``; ``bbox_xyxy`` and ``solution`` are corners.
        bad_records: refuse faulty records before training, or leave them out, counted and reported (``skip``).
        selection: which training records, in which order.
        loading: batch sizes, workers, order and seed; see `RecordDataModule`.
    """

    def __init__(
        self,
        images: Path,
        train: dict[str, Path] | None = None,
        val: dict[str, Path] | None = None,
        test: dict[str, Path] | None = None,
        box_format: BoxFormat | None = None,
        bad_records: Literal["error", "skip"] = "error",
        selection: Selection = Selection(),  # noqa: B008 - a frozen dataclass is safe to share
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        if box_format not in (None, "xyxy", "xywh"):
            raise UserError(f"data: box_format={box_format!r} must be xyxy or xywh")
        self.images, self.box_format, self.bad_records = Path(images), box_format, bad_records
        self.files: dict[Split, dict[str, Path]] = {
            "train": train or {},
            "val": val or {},
            "test": test or {},
            "predict": test or {},
        }
        self.selection = selection
        self.shuffle = self.shuffle and not selection.curriculum

    def build(self, split: Split) -> Source:
        """The expressions of one split; what is predicted on are the test files.

        Raises:
            MissingSplitError: there is no file for the split.
            UserError: it or an image is faulty.
        """
        if not self.files[split]:
            name = "test" if split == "predict" else split
            raise MissingSplitError(
                f"data.{name}: no file is named, such as {{refcoco_val: refcoco_val.jsonl}}; name one"
            )
        read = partial(read_rec, images=self.images, box_format=self.box_format)
        sources = {
            name: CocoSource(
                path,
                self.images,
                task="grounding",
                bad_records=self.bad_records,  # type: ignore[arg-type]
                read=read,
                referring=True,
            )
            for name, path in self.files[split].items()
        }
        return select(SetsSource(sources), self.selection, split, self.seed)
