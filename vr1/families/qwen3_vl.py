"""Qwen3-VL: a JSON list of boxes, both axes from 0 to 1000 over the whole image."""

from collections.abc import Sequence

from vr1.families.base import Family
from vr1.families.json_answer import read_json_answer, write_json_answer
from vr1.records import Answer, Boxes


class Qwen3VL(Family):
    """Qwen3-VL's way of grounding: Qwen2.5-VL's answers in another frame.

    The frame is what tells the two apart, and nothing in an answer shows it: numbers read in the wrong one are boxes in
    the wrong place.

    Source: Qwen3-VL's published cookbook on 2D grounding (wording, frame); arXiv 2511.21631 (appendix on evaluation
        prompts: referring expressions).

    Example:
        >>> from vr1.records import as_boxes
        >>> family = Qwen3VL()
        >>> family.instruction(["cat", "dog"])[-63:]
        'categories: "cat, dog". Report bbox coordinates in JSON format.'
        >>> family.to_image(as_boxes([[0, 0, 500, 1000]]), image_size=(640, 480), input_size=(364, 280)).tolist()
        [[0.0, 0.0, 320.0, 480.0]]
    """

    model_types = ("qwen3_vl", "qwen3_vl_moe")
    frame = 1000.0

    def instruction(self, categories: Sequence[str]) -> str:
        """The cookbook's wording, for one category and for several."""
        listed = ", ".join(categories)
        return (
            f'Locate every instance that belongs to the following categories: "{listed}". '
            "Report bbox coordinates in JSON format."
        )

    def refer(self, expression: str) -> str:
        """The wording of the authors' own evaluation on referring expressions."""
        return (
            f'Locate every object that matches the description "{expression}" in the image. '
            "Report bbox coordinates in JSON format."
        )

    def read(self, completion: str) -> Answer:
        """Read a JSON list of ``{"bbox_2d": [x1, y1, x2, y2], "label": text}``, leniently; see `read_json_answer`."""
        return read_json_answer(completion)

    def write(self, boxes: Boxes, labels: Sequence[str]) -> str:
        """Write the list as the released models do; see `write_json_answer`."""
        return write_json_answer(boxes, labels)
