"""What a model family is: its wording of the question, its grammar of the answer, its coordinate frame."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from vr1.boxes import Frame, frame_size, rescale
from vr1.errors import UserError
from vr1.families.item_grammar import ItemGrammar
from vr1.families.item_reader import read_items
from vr1.families.json_answer import read_json_answer, write_json_answer
from vr1.types import Answer, Boxes


@dataclass(frozen=True, kw_only=True)
class Wording:
    """Questions with ``{categories}`` where the categories go, or the expression.

    Args:
        one: asks for every object of one category (grounding).
        several: asks for every object of a list of categories (detection); None words it as ``one``.
        referring: asks for the one object that an expression describes; None words it as ``one``.
        between: what stands between two categories.

    Raises:
        UserError: a text without ``{categories}``.

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
                raise UserError(f"wording.{name}={text!r}: needs {{categories}} where the categories go")

    def question(self, categories: Sequence[str]) -> str:
        """The question for these categories."""
        text = self.several if self.several is not None and len(categories) > 1 else self.one
        return text.replace("{categories}", self.between.join(categories))

    def refer(self, expression: str) -> str:
        """The question for the one object of an expression."""
        return (self.one if self.referring is None else self.referring).replace("{categories}", expression)


class Family(ABC):
    """The way one family of models is asked for boxes and writes them.

    Families differ in the attributes below alone, unless one overrides a method. A family is stateless. Sizes are
    ``(width, height)`` in pixels: ``image_size`` of the image as stored, ``input_size`` of what the processor made of
    it (the model's input). How an image is resized is not said here: that is the processor's own rule, and there is no
    second copy of it.

    Attributes:
        model_types: the ``model_type`` of the configs that this family is chosen for.
        frame: what the numbers of a written box count.
        wording: the questions.
        grammar: the items of an answer; None for a JSON list of ``bbox_2d`` and ``label``.
        markers: special tokens that belong to an answer. A decoder that drops special tokens must keep these.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    frame: Frame = "input"
    grammar: ItemGrammar | None = None
    markers: tuple[str, ...] = ()

    @property
    @abstractmethod
    def wording(self) -> Wording:
        """The questions; most families give theirs as a class attribute."""

    def instruction(self, categories: Sequence[str]) -> str:
        """The text of the question that asks for every object of the given categories."""
        return self.wording.question(categories)

    def refer(self, expression: str) -> str:
        """The text of the question that asks for the one object that an expression describes."""
        return self.wording.refer(expression)

    def read(self, completion: str) -> Answer:
        """Read a completion; see `read_items` and `read_json_answer`.

        Never raises: text that is no answer gives an answer without boxes.
        """
        return read_items(completion, self.grammar) if self.grammar else read_json_answer(completion)

    def write(self, boxes: Boxes, labels: Sequence[str]) -> str:
        """Write boxes ``[N, 4]``, given in the family's own frame, as the family's models would."""
        return self.grammar.write(boxes, labels) if self.grammar else write_json_answer(boxes, labels)

    def to_image(self, boxes: Boxes, image_size: tuple[int, int], input_size: tuple[int, int]) -> Boxes:
        """Convert boxes ``[N, 4]`` from the family's frame to image pixels."""
        return rescale(boxes, self.frame_size(image_size, input_size), image_size)

    def from_image(self, boxes: Boxes, image_size: tuple[int, int], input_size: tuple[int, int]) -> Boxes:
        """Convert boxes ``[N, 4]`` from image pixels to the family's frame."""
        return rescale(boxes, image_size, self.frame_size(image_size, input_size))

    def frame_size(self, image_size: tuple[int, int], input_size: tuple[int, int]) -> tuple[float, float]:
        """The largest x and y that lie inside the image, in the family's frame."""
        return frame_size(self.frame, image_size, input_size)
