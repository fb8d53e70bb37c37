"""Qwen2.5-VL: a JSON list of boxes in absolute pixels of the resized model input."""

import json
from collections.abc import Sequence

from vr1.boxes import rescale
from vr1.families.base import Family
from vr1.families.json_answer import read_json_answer
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

    def instruction(self, categories: Sequence[str]) -> str:
        """Grounding wording for one category, detection wording for several."""
        if len(categories) == 1:
            return f"Locate every {categories[0]} in the image and output the coordinates in JSON format."
        listed = ", ".join(categories)
        return (
            "Locate every item from the category list in the image and output the coordinates in JSON format. "
            f"The category set includes {listed}."
        )

    def read(self, completion: str) -> Answer:
        """Read a JSON list of ``{"bbox_2d": [x1, y1, x2, y2], "label": text}``, leniently; see `read_json_answer`."""
        return read_json_answer(completion)

    def write(self, boxes: Boxes, labels: Sequence[str]) -> str:
        """Write the list as the released models do: fenced, one item a line, tab-indented, whole pixels."""
        assert len(boxes) == len(labels), (len(boxes), len(labels))
        items = [
            f'\t{{"bbox_2d": {[round(value) for value in box]}, "label": {json.dumps(label, ensure_ascii=False)}}}'
            for box, label in zip(boxes.tolist(), labels, strict=True)
        ]
        body = "[\n" + ",\n".join(items) + "\n]" if items else "[]"
        return f"```json\n{body}\n```"

    def to_image(self, boxes: Boxes, image_size: tuple[int, int], input_size: tuple[int, int]) -> Boxes:
        """Scale from input pixels to image pixels."""
        return rescale(boxes, input_size, image_size)

    def from_image(self, boxes: Boxes, image_size: tuple[int, int], input_size: tuple[int, int]) -> Boxes:
        """Scale from image pixels to input pixels."""
        return rescale(boxes, image_size, input_size)

    def frame_size(self, input_size: tuple[int, int]) -> tuple[float, float]:
        """The input's own width and height."""
        return float(input_size[0]), float(input_size[1])
