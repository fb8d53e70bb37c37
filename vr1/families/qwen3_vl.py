"""Qwen3-VL: a JSON list of boxes, both axes from 0 to 1000 over the whole image."""

from vr1.families.base import Family
from vr1.families.wording import Wording


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
    wording = Wording(
        one='Locate every instance that belongs to the following categories: "{categories}". '
        "Report bbox coordinates in JSON format.",
        referring='Locate every object that matches the description "{categories}" in the image. '
        "Report bbox coordinates in JSON format.",
    )
