"""The base class of model families: questions, form of the answer, coordinate frame.

Shape letter: N boxes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vr1.boxes import Frame, frame_size, rescale
from vr1.errors import UserError
from vr1.families.item_grammar import ItemGrammar
from vr1.families.item_reader import read_items
from vr1.families.json_answer import read_json_answer, write_json_answer
from vr1.types import Answer, Boxes


@dataclass(frozen=True, kw_only=True)
class Wording:
    """Templates of the questions; ``{categories}`` stands for the categories or the referring expression.

    Args:
        one: question about all objects of one category (grounding).
        several: question about all objects of several categories (detection); None uses ``one``.
        referring: question about the one object that an expression describes; None uses ``one``.
        between: separator of two categories.

    Raises:
        UserError: a template without ``{categories}``.

    Example:
        >>> Wording(one="Find every {categories}.", between=" and ").question(["cat", "dog"])
        'Find every cat and dog.'
    """

    one: str
    several: str | None = None
    referring: str | None = None
    between: str = ", "

    def __post_init__(self) -> None:
        for name, text in (("one", self.one), ("several", self.several), ("referring", self.referring)):
            if text is not None and "{categories}" not in text:
                raise UserError(f"wording.{name}={text!r}: needs {{categories}}, which the categories replace")

    def question(self, categories: Sequence[str]) -> str:
        """The question about these categories."""
        text = self.several if self.several is not None and len(categories) > 1 else self.one
        return text.replace("{categories}", self.between.join(categories))

    def refer(self, expression: str) -> str:
        """The question about the one object that an expression describes."""
        return (self.one if self.referring is None else self.referring).replace("{categories}", expression)


class Family(ABC):
    """The questions that a family of models was trained on and the form of its answers.

    A family is stateless; most subclasses only set the attributes below. All sizes are ``(width, height)`` in pixels:
    ``image_size`` of the image as stored, ``input_size`` of the image as the processor resized it for the model. A
    family does not resize images: the processor does.

    Attributes:
        model_types: the ``model_type`` values of ``config.json`` that select this family.
        frame: unit of the coordinates in an answer; see `vr1.boxes.Frame`.
        wording: templates of the questions.
        grammar: templates of an answer; None for a JSON list of ``box_key`` and ``label``.
        box_key: the name of a box in that JSON list.
        y_first: whether the numbers of a box in that JSON list are ``y1, x1, y2, x2``. The boxes of this class are
            ``x1, y1, x2, y2`` in any case. JSON in place of a grammar's items is read in the order of the grammar.
        markers: special tokens that are part of an answer and stay in its text.
        implies_label: whether a box without a label has that of a question about one category.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    frame: Frame = "input"
    grammar: ItemGrammar | None = None
    box_key: str = "bbox_2d"
    y_first: bool = False
    markers: tuple[str, ...] = ()
    implies_label: bool = False

    @property
    @abstractmethod
    def wording(self) -> Wording:
        """Templates of the questions; a class attribute in most families."""

    def instruction(self, categories: Sequence[str]) -> str:
        """The question about all objects of the given categories."""
        return self.wording.question(categories)

    def refer(self, expression: str) -> str:
        """The question about the one object that an expression describes."""
        return self.wording.refer(expression)

    def read(self, completion: str) -> Answer:
        """Parse a completion; see `read_items` and `read_json_answer`.

        Never raises: text without boxes is an answer without boxes.
        """
        if self.grammar is not None:
            return read_items(completion, self.grammar)
        return read_json_answer(completion, self.box_key, self.y_first)

    def write(self, boxes: Boxes, labels: Sequence[str]) -> str:
        """Write boxes ``[N, 4]`` of the family's frame and their N labels as an answer of its models."""
        if self.grammar is not None:
            return self.grammar.write(boxes, labels)
        # An integer is no place in a frame that ends at 1.
        decimals = 0 if isinstance(self.frame, str) or self.frame > 1 else 3
        return write_json_answer(boxes, labels, self.box_key, self.y_first, decimals)

    def to_image(self, boxes: Boxes, image_size: tuple[int, int], input_size: tuple[int, int]) -> Boxes:
        """Convert boxes ``[N, 4]`` from the family's frame to image pixels."""
        return rescale(boxes, self.frame_size(image_size, input_size), image_size)

    def from_image(self, boxes: Boxes, image_size: tuple[int, int], input_size: tuple[int, int]) -> Boxes:
        """Convert boxes ``[N, 4]`` from image pixels to the family's frame."""
        return rescale(boxes, image_size, self.frame_size(image_size, input_size))

    def frame_size(self, image_size: tuple[int, int], input_size: tuple[int, int]) -> tuple[float, float]:
        """Largest x and y inside the image, in the family's frame."""
        return frame_size(self.frame, image_size, input_size)

    def prompt_info(self) -> dict[str, Any]:
        """Questions and frame as plain values, for checkpoints and model cards.

        Returns:
            ``one``, ``several`` and ``referring`` (questions about ``CATEGORY`` or ``EXPRESSION``), ``frame``, and
            ``special_tokens``: whether special tokens are part of an answer.
        """
        return {
            "one": self.instruction(["CATEGORY"]),
            "several": self.instruction(["CATEGORY 1", "CATEGORY 2"]),
            "referring": self.refer("EXPRESSION"),
            "frame": self.frame,
            "special_tokens": bool(self.markers),
        }
