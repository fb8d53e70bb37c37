"""Referring expressions, each an image, a text and its box: reader and data module.

The reader understands the fields of RefCOCO slices, of VLM-R1's processed json and of jsonl with conversations.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vr1.boxes import rescale
from vr1.data.annotated import AnnotatedDataModule
from vr1.data.annotations import AnnotationTable, TableBuilder, box_fault
from vr1.data.coco_objects import BoxFormat
from vr1.data.datamodule import InputSize, MissingSplitError, Source, Split
from vr1.data.image_files import ImageFolder
from vr1.data.images import ImageError
from vr1.data.mixture import SetsSource
from vr1.data.referring_line import LineError, Referred, images_of, referred
from vr1.data.validation import Problems, is_side, side
from vr1.errors import UserError
from vr1.types import as_boxes

BoxFrame = Literal["pixels", "input"] | float
"""Unit of written boxes: pixels of the image, pixels of the model's input, or the number that both axes end at, such as
1000 or 1."""

Scene = Literal["first", "last"]
"""Which of several images of a line the box is on."""

_INPUT_SIZES = (("input_width", "input_height"), ("resized_width", "resized_height"))
# Boxes that show a frame: of fewer, some lie in a corner by chance.
_FEWEST = 8
_PER_MILLE = 1000.0


class _Line(NamedTuple):
    """One expression of a file, its box as written."""

    where: str
    image: str
    references: tuple[tuple[str, tuple[int, int]], ...]
    size: tuple[int, int]
    input_size: tuple[int, int] | None
    item: Referred


def read_referring(
    path: Path,
    images: Path,
    box_format: BoxFormat | None = None,
    frame: BoxFrame | None = None,
    scene: Scene | None = None,
    input_size: InputSize | None = None,
) -> tuple[AnnotationTable, Problems, list[str]]:
    """Read a file of referring expressions. Every expression is an image of the table, and a category of its own.

    Args:
        path: a ``.jsonl`` file, or a ``.json`` file that holds one list.
        images: the folder to which ``image`` is relative; sizes that the file does not give are read from the images.
        box_format: what ``bbox`` holds; ``bbox_xyxy`` and ``solution`` always hold corners.
        frame: unit of the boxes; None takes pixels, and refuses boxes that look like another unit.
        scene: which of several images the box is on; the others are shown with it. None refuses such lines.
        input_size: what the model's processor makes of the size of an image, for boxes in pixels of the input where a
            line does not give its size; None refuses such lines.

    Returns:
        The table of the valid lines, the problems of the others, and notes on what was changed.

    Raises:
        UserError: if the file is missing or not JSON, holds no list, or a setting has to say what its boxes are.
    """
    problems, builder = Problems(str(path)), TableBuilder(referring=True, image_first=scene == "first")
    folder, notes = ImageFolder(images), []
    lines = [line for where, item in _items(path, problems) for line in _lines(where, item, folder, problems, scene)]
    if frame == "input" and input_size is not None and (unsized := [one for one in lines if one.input_size is None]):
        notes.append(
            f"{len(unsized)} boxes are read in pixels of the input that the model's processor makes of their images,"
            f" such as {_by(input_size(unsized[0].size))} of {_by(unsized[0].size)}, since their lines do not give it"
        )
        lines = [one if one.input_size else one._replace(input_size=input_size(one.size)) for one in lines]
    _check_format(path, lines, box_format)
    _check_frame(path, lines, box_format, frame)
    for line in lines:
        box = _in_pixels(line, box_format, frame)
        fault = f"line without {_names_of_sizes()}, which frame: input needs" if box is None else None
        if box is not None:
            fault = box_fault(box, line.size)
            if fault is None and frame is None and _outside(box, line.size):
                fault = (
                    "box that reaches outside its image: set frame to pixels if it is right, or to the unit of the"
                    " boxes, such as 1000"
                )
        if fault is not None or box is None:
            problems.add(fault or "", line.where, line.image)
            continue
        builder.add_image(line.image, line.size, line.references)
        builder.add_object(line.item.text, box)
    return builder.table(), problems, [*notes, *builder.notes()]


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


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


def _lines(where: str, item: Any, folder: ImageFolder, problems: Problems, scene: Scene | None) -> list[_Line]:
    """The expressions of one line; none of them where one is faulty."""
    name = ""
    try:
        if not isinstance(item, dict):
            raise LineError("line that is no JSON object")
        *others, name = images_of(item)
        if others and scene is None:
            raise LineError("line with several images: set scene to last or first, the one that the box is on")
        if others and scene == "first":
            others, name = [*others[1:], name], others[0]
        found = referred(item)
        # As the line gives it, or as the image has it.
        size = _sides(item, ("width", "height")) or folder.size(name)
        references = tuple((folder.find(other) or other, folder.size(other)) for other in others)
    except LineError as error:
        problems.add(str(error), where, name)
        return []
    except ImageError as error:
        problems.add(f"image that cannot be opened: {error}", where, name)
        return []
    input_size = next((found_size for names in _INPUT_SIZES if (found_size := _sides(item, names))), None)
    places = [where] if len(found) == 1 else [f"{where}, question {number}" for number in range(1, len(found) + 1)]
    return [_Line(place, name, references, size, input_size, one) for place, one in zip(places, found, strict=True)]


def _sides(item: dict[str, Any], names: Sequence[str]) -> tuple[int, int] | None:
    if not all(is_side(item.get(name)) for name in names):
        return None
    width, height = (side(item[name]) or 0 for name in names)
    return width, height


def _names_of_sizes() -> str:
    return " or ".join(f"{width} and {height}" for width, height in _INPUT_SIZES)


def _in_pixels(line: _Line, box_format: BoxFormat | None, frame: BoxFrame | None) -> list[float] | None:
    """Corners in pixels of the image; None where the size of the input is needed and not given."""
    box = line.item.box
    if box_format == "xywh" and not line.item.says_format:
        box = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    if frame is None or frame == "pixels":
        return box
    if frame == "input" and line.input_size is None:
        return None
    from_size = line.input_size if frame == "input" else (float(frame), float(frame))
    assert from_size is not None
    corners: list[float] = rescale(as_boxes(box), from_size, line.size)[0].tolist()
    return corners


def _outside(box: Sequence[float], size: tuple[int, int]) -> bool:
    """Whether a box reaches outside by more than exporters' rounding."""
    return max(-box[0], -box[1], box[2] - size[0], box[3] - size[1]) > 1


def _check_format(path: Path, lines: Sequence[_Line], box_format: BoxFormat | None) -> None:
    for line in lines if box_format is None else ():
        if not line.item.says_format:
            raise UserError(
                f"annotations={path}: {line.where} has a 'bbox', which may be two corners or a corner and a size; set "
                "box_format to xyxy or xywh"
            )


def _check_frame(path: Path, lines: Sequence[_Line], box_format: BoxFormat | None, frame: BoxFrame | None) -> None:
    """Refuse boxes of which the unit cannot be the one that is set, or taken without a setting."""
    boxes = [(line, _in_pixels(line, box_format, None) or line.item.box) for line in lines]
    if lines and frame != 1 and all(min(box) >= 0 and max(box) <= 1 for _, box in boxes):
        raise UserError(
            f"annotations={path}: all boxes lie in 0..1, so they are shares of the image; set frame to 1 (now"
            f" {frame or 'pixels'})"
        )
    if frame is not None:
        return
    if marked := [line for line in lines if line.item.per_mille]:
        raise UserError(
            f"annotations={path}: {marked[0].where} writes its box as models do that count in 0..1000; set frame to"
            " 1000, or to pixels"
        )
    over = [line for line, box in boxes if _outside(box, line.size)]
    large = [line for line in lines if min(line.size) > 1.2 * _PER_MILLE]
    within = all(min(box) >= 0 and max(box) <= _PER_MILLE for _, box in boxes)
    if within and max(3 * len(over), len(large)) >= max(len(lines), _FEWEST):
        raise UserError(
            f"annotations={path}: all boxes lie in 0..1000, whatever the size of the image, such as {lines[0].image} of"
            f" {lines[0].size[0]} x {lines[0].size[1]}; set frame to 1000, or to pixels if they are"
        )


class ReferringDataModule(AnnotatedDataModule):
    """Referring expressions (RefCOCO, RefCOCO+, RefCOCOg, or VLM-R1's files): one text, one box.

    Args:
        images: the folder to which the files' ``image`` is relative.
        train: files to train on, by name of the set.
        val: files to validate on.
        test: files to test and predict on; with the callback ``callbacks.Evaluation`` each is reported by its name.
        box_format: what a field named ``bbox`` holds, ``xyxy`` or ``xywh``; ``bbox_xyxy`` and ``solution`` are corners.
        frame: unit of the boxes: ``pixels`` of the image, ``1000`` or ``1`` (what both axes end at), or ``input``,
            pixels of the resized image. Its size is ``input_width`` and ``input_height`` of the line; without them,
            what the processor of the model makes of the image. None takes pixels, and refuses boxes that look like
            another unit.
        scene: which of several images of a line the box is on, ``last`` or ``first``. The others, such as a crop of
            what is sought, are shown to the model in the order of the line. None refuses lines with several images.
        settings: faulty records, selection and loading; see `AnnotatedDataModule` and `RecordDataModule`.
    """

    asks_for_expressions = True

    def __init__(
        self,
        images: Path,
        train: dict[str, Path] | None = None,
        val: dict[str, Path] | None = None,
        test: dict[str, Path] | None = None,
        box_format: Literal["xyxy", "xywh"] | None = None,
        frame: Literal["pixels", "input"] | float | None = None,
        scene: Literal["last", "first"] | None = None,
        **settings: Any,
    ) -> None:
        # Each expression is a question of its own, and has one box.
        super().__init__(task="grounding", empty_images="keep", negatives=0.0, categories=None, **settings)
        if box_format not in (None, "xyxy", "xywh"):
            raise UserError(f"data.box_format={box_format!r} must be xyxy or xywh")
        if frame not in (None, "pixels", "input") and (isinstance(frame, bool | str) or frame <= 0):
            raise UserError(f"data.frame={frame!r} must be pixels, input, or the number that both axes end at")
        if scene not in (None, "last", "first"):
            raise UserError(f"data.scene={scene!r} must be last or first")
        self.images, self.box_format, self.frame, self.scene = Path(images), box_format, frame, scene
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
        read = partial(
            read_referring,
            images=self.images,
            box_format=self.box_format,
            frame=self.frame,
            scene=self.scene,
            input_size=self.input_size,
        )
        return SetsSource({name: self.open(path, self.images, read=read) for name, path in self.files[split].items()})
