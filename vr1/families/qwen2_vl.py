"""Qwen2-VL: marker tokens around label and corners, both axes from 0 to 1000 over the whole image."""

from vr1.families.base import Family
from vr1.families.item_grammar import ItemGrammar
from vr1.families.wording import Wording


class Qwen2VL(Family):
    """Qwen2-VL's way of grounding.

    The markers are special tokens, which the rollout keeps in the text. A text without them is read too (recorded
    answers often lost them), and so is JSON, which the instruct models write when they are asked to, in the same frame.

    Source: Qwen2-VL, arXiv 2409.12191, section 2.2 (grounding data); the wording is that of the model's users,
        and for referring expressions, where none is published, ours.

    Example:
        >>> from vr1.records import as_boxes
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
