"""What a model family is: its wording of the question, its grammar of the answer, its coordinate frame."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from vr1.boxes import Frame, frame_size, rescale
from vr1.records import Answer, Boxes


class Family(ABC):
    """The way one family of models is asked for boxes and writes them.

    A family is stateless. Sizes are ``(width, height)`` in pixels: ``image_size`` of the image as stored,
    ``input_size`` of what the processor made of it (the model's input). How an image is resized is not said here: that
    is the processor's own rule, and there is no second copy of it.

    Attributes:
        model_types: the ``model_type`` of the configs that this family is chosen for.
        frame: what the numbers of a written box count.
        markers: special tokens that belong to an answer. A decoder that drops special tokens must keep these.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    frame: Frame = "input"
    markers: tuple[str, ...] = ()

    @abstractmethod
    def instruction(self, categories: Sequence[str]) -> str:
        """The text of the question that asks for every object of the given categories."""

    def refer(self, expression: str) -> str:
        """The text of the question that asks for the one object that an expression describes.

        It is worded as a category where a family has no words of its own for it.
        """
        return self.instruction([expression])

    @abstractmethod
    def read(self, completion: str) -> Answer:
        """Read a completion. Never raises: text that is no answer gives an answer without boxes."""

    @abstractmethod
    def write(self, boxes: Boxes, labels: Sequence[str]) -> str:
        """Write boxes ``[N, 4]``, given in the family's own frame, as the family's models would."""

    def to_image(self, boxes: Boxes, image_size: tuple[int, int], input_size: tuple[int, int]) -> Boxes:
        """Convert boxes ``[N, 4]`` from the family's frame to image pixels."""
        return rescale(boxes, self.frame_size(image_size, input_size), image_size)

    def from_image(self, boxes: Boxes, image_size: tuple[int, int], input_size: tuple[int, int]) -> Boxes:
        """Convert boxes ``[N, 4]`` from image pixels to the family's frame."""
        return rescale(boxes, image_size, self.frame_size(image_size, input_size))

    def frame_size(self, image_size: tuple[int, int], input_size: tuple[int, int]) -> tuple[float, float]:
        """The largest x and y that lie inside the image, in the family's frame."""
        return frame_size(self.frame, image_size, input_size)
