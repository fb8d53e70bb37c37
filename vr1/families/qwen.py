"""Qwen's vision-language models: marker tokens (Qwen2-VL) or a JSON list of boxes (Qwen2.5-VL, Qwen3-VL)."""

from vr1.families.base import Family, Wording
from vr1.families.item_grammar import ItemGrammar


class Qwen2VL(Family):
    """Qwen2-VL: special tokens around labels and boxes.

    Answers without the special tokens are read too, since recorded answers often lack them, and so is JSON, which the
    instruct models can write in the same frame.

    Source: Qwen2-VL, arXiv 2409.12191, section 2.2 (grounding data). The questions are those that users of the model
        published; the one about referring expressions is ours, since none is published.

    Example:
        >>> from vr1.types import as_boxes
        >>> family = Qwen2VL()
        >>> family.write(as_boxes([[1, 2, 30, 40]]), ["cat"])
        '<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(30,40)<|box_end|>'
        >>> family.read("cat(1,2),(30,40)").boxes.tolist()
        [[1.0, 2.0, 30.0, 40.0]]
    """

    model_types = ("qwen2_vl",)
    frame = 1000.0
    wording = Wording(
        one="Find every <|object_ref_start|>{categories}<|object_ref_end|> in the image with grounding.",
        several="Find every object of these categories in the image with grounding: "
        "<|object_ref_start|>{categories}<|object_ref_end|>.",
        referring="Find <|object_ref_start|>{categories}<|object_ref_end|> in the image with grounding.",
        between="<|object_ref_end|>, <|object_ref_start|>",
    )
    grammar = ItemGrammar(
        item="<|object_ref_start|>{label}<|object_ref_end|>{box}",
        box="<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>",
    )
    markers = ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>")


class Qwen25VL(Family):
    r"""Qwen2.5-VL: a JSON list of boxes in pixels of the model's input.

    Source: Vision-R1, arXiv 2503.18013, supplementary (questions); Qwen2.5-VL's published cookbook (answers,
        referring expressions).

    Example:
        >>> from vr1.types import as_boxes
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


class Qwen3VL(Family):
    """Qwen3-VL and Qwen3.5: the JSON answers of Qwen2.5-VL, but in a frame of 1000 by 1000.

    Nothing in an answer shows its frame: read in the wrong one, boxes are in the wrong place.

    Source: Qwen3-VL's published cookbook on 2D grounding (questions, frame); arXiv 2511.21631 (appendix on evaluation
        prompts: referring expressions). Qwen3.5 has no cookbook of its own; its users document the same frame.

    Example:
        >>> from vr1.types import as_boxes
        >>> family = Qwen3VL()
        >>> family.instruction(["cat", "dog"])[-63:]
        'categories: "cat, dog". Report bbox coordinates in JSON format.'
        >>> family.to_image(as_boxes([[0, 0, 500, 1000]]), image_size=(640, 480), input_size=(364, 280)).tolist()
        [[0.0, 0.0, 320.0, 480.0]]
    """

    model_types = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
    frame = 1000.0
    wording = Wording(
        one='Locate every instance that belongs to the following categories: "{categories}". '
        "Report bbox coordinates in JSON format.",
        referring='Locate every object that matches the description "{categories}" in the image. '
        "Report bbox coordinates in JSON format.",
    )
