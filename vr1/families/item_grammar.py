"""Answers that are a sequence of items, each a label with its boxes, defined by templates; this module writes them.

`item_reader` reads them.

Shape letter: N boxes.
"""

import itertools
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vr1.errors import UserError
from vr1.families.item_reader import read_items
from vr1.types import Boxes

COORDINATES = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True, kw_only=True)
class ItemGrammar:
    """Templates of an answer.

    Args:
        box: template of a box with ``{x1}``, ``{y1}``, ``{x2}`` and ``{y2}`` in the order of the model. A format may
            follow the name: ``{x1:.3f}`` for three decimals, ``{x1:04.0f}`` for four digits; the default is an integer.
            In all templates, ``{{`` and ``}}`` stand for single braces.
        item: template of an item with ``{label}`` and ``{box}``; or with ``{label}`` and ``{boxes}``, if consecutive
            boxes of one label share an item.
        separator: text between two items.
        box_separator: text between two boxes of one item.
        empty: the answer without objects.
        shift: added to every number that is read: 0.5 if numbers are bins that stand for their middle.
        largest: largest number that can be written, for models with one token for each number; None for no limit.

    Raises:
        UserError: a template has a missing, unknown or duplicate field, or a format that is not for numbers; or the
            grammar does not read what it writes.

    Example:
        >>> from vr1.types import as_boxes
        >>> grammar = ItemGrammar(item="{label}-{box}", box="[{x1:.1f},{y1:.1f},{x2:.1f},{y2:.1f}]", separator="&")
        >>> grammar.write(as_boxes([[0, 0, 0.5, 1], [0.1, 0, 0.2, 1]]), ["cat", "dog"])
        'cat-[0.0,0.0,0.5,1.0]&dog-[0.1,0.0,0.2,1.0]'
    """

    box: str = "[{x1}, {y1}, {x2}, {y2}]"
    item: str = "{label}: {box}"
    separator: str = "\n"
    box_separator: str = ", "
    empty: str = "None"
    shift: float = 0.0
    largest: int | None = None

    def __post_init__(self) -> None:
        for name, template in (("box", self.box), ("item", self.item)):
            try:
                for _, _, spec in _parts(template):
                    _write_number(0.0, spec)
            except ValueError as error:
                raise UserError(f"grammar.{name}={template!r}: {error}") from error
        fields = [name for _, name, _ in self._box_parts if name]
        if sorted(fields) != sorted(COORDINATES):
            raise UserError(f"grammar.box={self.box!r}: needs each of {{x1}}, {{y1}}, {{x2}} and {{y2}} once")
        item = sorted(name for _, name, _ in _parts(self.item) if name)
        if item not in (["box", "label"], ["boxes", "label"]):
            raise UserError(f"grammar.item={self.item!r}: needs {{label}} once, and {{box}} or {{boxes}} once")
        self._check_that_it_reads_back()

    def _check_that_it_reads_back(self) -> None:
        most = 80.0 if self.largest is None else min(80.0, float(self.largest))
        boxes = np.array([[1, 2, 30, 40], [5, 6, 70, 80], [5, 7, 71, 80]]) * most / 80 + self.shift
        labels = ("cat", "black dog", "black dog")
        for count in (0, 1, len(boxes)):
            text = self.write(boxes[:count], labels[:count])
            answer = read_items(text, self)
            same_boxes = len(answer.boxes) == count and np.abs(answer.boxes - boxes[:count]).max(initial=0.0) < 0.51
            if not (answer.follows_template and answer.labels == labels[:count] and same_boxes):
                read = list(zip(answer.labels, answer.boxes.tolist(), strict=True))
                raise UserError(
                    f"grammar(item={self.item!r}, box={self.box!r}): {text!r} is written but read as {read}; put texts"
                    " around the label and the numbers that separate them"
                )

    @cached_property
    def _box_parts(self) -> list[tuple[str, str, str]]:
        return _parts(self.box)

    @cached_property
    def order(self) -> list[int]:
        """For each of the four numbers in the text, its index in ``x1, y1, x2, y2``."""
        return [COORDINATES.index(name) for _, name, _ in self._box_parts if name]

    @cached_property
    def box_literals(self) -> list[str]:
        """Five texts: before the first number, between the numbers, and after the last."""
        literals = [literal for literal, _, _ in self._box_parts]
        return literals if len(literals) == 5 else [*literals, ""]

    @cached_property
    def item_literals(self) -> tuple[str, str, str]:
        """Three texts of an item: before its first part, between label and boxes, after its last."""
        literals = [literal for literal, _, _ in _parts(self.item)]
        return literals[0], literals[1], literals[2] if len(literals) > 2 else ""

    @cached_property
    def label_first(self) -> bool:
        """Whether the label comes before its box."""
        return _parts(self.item)[0][1] == "label"

    @cached_property
    def shares_label(self) -> bool:
        """Whether an item may hold several boxes."""
        return any(name == "boxes" for _, name, _ in _parts(self.item))

    @property
    def y_first(self) -> bool:
        """Whether a box is written as ``y1, x1, y2, x2``."""
        return self.order == [1, 0, 3, 2]

    def write(self, boxes: Boxes, labels: Sequence[str]) -> str:
        """Write boxes ``[N, 4]`` of the family's frame with their N labels; whitespace in a label becomes one space."""
        assert len(boxes) == len(labels), (len(boxes), len(labels))
        if not len(boxes):
            return self.empty
        items = [(" ".join(label.split()), self._box(box)) for label, box in zip(labels, boxes.tolist(), strict=True)]
        if not self.shares_label:
            return self.render((label, [box]) for label, box in items)
        grouped = itertools.groupby(items, key=lambda item: item[0])
        return self.render((label, [box for _, box in group]) for label, group in grouped)

    def render(self, items: Iterable[tuple[str, Sequence[str]]]) -> str:
        """The answer of labels, each with the texts of its boxes."""
        before, between, after = self.item_literals
        texts = []
        for label, boxes in items:
            joined = self.box_separator.join(boxes)
            first, second = (label, joined) if self.label_first else (joined, label)
            texts.append(f"{before}{first}{between}{second}{after}")
        return self.separator.join(texts)

    def render_box(self, numbers: Sequence[str]) -> str:
        """The text of a box with these four numbers."""
        first, *rest = self.box_literals
        return first + "".join(number + literal for number, literal in zip(numbers, rest, strict=True))

    def _box(self, box: Sequence[float]) -> str:
        formats = [spec for _, name, spec in self._box_parts if name]
        return self.render_box(
            [self._number(box[place], spec) for place, spec in zip(self.order, formats, strict=True)]
        )

    def _number(self, value: float, spec: str) -> str:
        value -= self.shift
        if self.largest is not None:
            value = min(max(value, 0.0), float(self.largest))
        return _write_number(value, spec)


def _write_number(value: float, spec: str) -> str:
    # "z" keeps a rounded -0.2 from being written as -0.
    return format(value, f"z{spec or '.0f'}")


def _parts(template: str) -> list[tuple[str, str, str]]:
    """Literal text, field name and format of each part; text after the last field is a part with an empty name.

    Raises:
        ValueError: braces that do not match, a field without a name, or a conversion.
    """
    parts = []
    before = ""
    for literal, name, spec, conversion in string.Formatter().parse(template):
        # A doubled brace ends a part of the parser's, but not one of ours.
        before += literal
        if name == "" or conversion:
            raise ValueError("a field is a name and, if needed, a format after a colon")
        if name is not None:
            parts.append((before, name, spec or ""))
            before = ""
    return [*parts, (before, "", "")] if before else parts
