"""What a model family is: its wording of the question, its grammar of the answer, its coordinate frame."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from vr1.records import Answer, Boxes


class Family(ABC):
    """The way one family of models is asked for boxes and writes them.

    A family is stateless. Sizes are ``(width, height)`` in pixels: ``image_size`` of the image as stored,
    ``input_size`` of what the processor made of it (the model's input).
    """

    @abstractmethod
    def instruction(self, categories: Sequence[str]) -> str:
        """The text of the question that asks for every object of the given categories."""

    @abstractmethod
    def read(self, completion: str) -> Answer:
        """Read a completion. Never raises: text that is no answer gives an answer without boxes."""

    @abstractmethod
    def write(self, boxes: Boxes, labels: Sequence[str]) -> str:
        """Write boxes ``[N, 4]``, given in the family's own frame, as the family's models would."""

    @abstractmethod
    def to_image(self, boxes: Boxes, image_size: tuple[int, int], input_size: tuple[int, int]) -> Boxes:
        """Convert boxes ``[N, 4]`` from the family's frame to image pixels."""

    @abstractmethod
    def from_image(self, boxes: Boxes, image_size: tuple[int, int], input_size: tuple[int, int]) -> Boxes:
        """Convert boxes ``[N, 4]`` from image pixels to the family's frame."""

    @abstractmethod
    def frame_size(self, input_size: tuple[int, int]) -> tuple[float, float]:
        """The largest x and y that lie inside the image, in the family's frame."""
