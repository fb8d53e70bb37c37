"""Qwen2.5-VL: a JSON list of boxes in absolute pixels of the resized model input."""

from vr1.families.base import Family
from vr1.families.wording import Wording


class Qwen25VL(Family):
    r"""Qwen2.5-VL's way of grounding.

    Source: Vision-R1, arXiv 2503.18013, supplementary (instructions); Qwen2.5-VL's published cookbook (answers,
        referring expressions).

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
    wording = Wording(
        one="Locate every {categories} in the image and output the coordinates in JSON format.",
        several="Locate every item from the category list in the image and output the coordinates in JSON format. "
        "The category set includes {categories}.",
        referring="Locate {categories}, output its bbox coordinates using JSON format.",
    )
