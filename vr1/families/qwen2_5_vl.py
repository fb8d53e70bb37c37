"""Qwen2.5-VL: a JSON list of boxes in absolute pixels of the resized model input."""

from collections.abc import Sequence

from vr1.families.base import Family
from vr1.families.json_answer import read_json_answer, write_json_answer
from vr1.records import Answer, Boxes


class Qwen25VL(Family):
    r"""Qwen2.5-VL's way of grounding.

    Source: Vision-R1, arXiv 2503.18013, supplementary (instructions); Qwen2.5-VL's published cookbook (answers).

    Example:
        >>> from vr1.records import as_boxes
        >>> family = Qwen25VL()
        >>> family.instruction(["cat"])
        'Locate every cat in the image and output the coordinates in JSON format.'
        >>> family.write(as_boxes([[1, 2, 30.4, 40.6]]), ["cat"])
        '```json\n[\n\t{"bbox_2d": [1, 2, 30, 41], "label": "cat"}\n]\n```'
        >>> family.read(family.write(as_boxes([[1, 2, 30, 40]]), ["cat"])).boxes.tolist()
        [[1.0, 2.0, 30.0, 40.0]]
    """

    model_types = ("qwen2_5_vl",)
    frame = "input"

    def instruction(self, categories: Sequence[str]) -> str:
        """Grounding wording for one category, detection wording for several."""
        if len(categories) == 1:
            return f"Locate every {categories[0]} in the image and output the coordinates in JSON format."
        listed = ", ".join(categories)
        return (
            "Locate every item from the category list in the image and output the coordinates in JSON format. "
            f"The category set includes {listed}."
        )

    def refer(self, expression: str) -> str:
        """The cookbook's wording for a single described object."""
        return f"Locate {expression}, output its bbox coordinates using JSON format."

    def read(self, completion: str) -> Answer:
        """Read a JSON list of ``{"bbox_2d": [x1, y1, x2, y2], "label": text}``, leniently; see `read_json_answer`."""
        return read_json_answer(completion)

    def write(self, boxes: Boxes, labels: Sequence[str]) -> str:
        """Write the list as the released models do; see `write_json_answer`."""
        return write_json_answer(boxes, labels)
