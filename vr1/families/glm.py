"""GLM-V: lists of boxes between two special tokens, both axes from 0 to 1000."""

import re
from collections.abc import Sequence

from vr1.families.base import Family, Wording
from vr1.families.json_answer import read_json_answer, write_json_answer
from vr1.types import Answer, Boxes

_BEGIN, _END = "<|begin_of_box|>", "<|end_of_box|>"
_MARKED = re.compile(rf"{re.escape(_BEGIN)}(.*?)(?:{re.escape(_END)}|\Z)", re.DOTALL)
_BRACKETS = str.maketrans("(<)>", "[[]]")


class GLM4V(Family):
    r"""GLM-4.1V, GLM-4.5V and GLM-4.6V.

    The models mark boxes with two special tokens, and leave the form to the question: ``[[x1,y1,x2,y2], ...]`` in any
    brackets, without labels, or a JSON list with labels. Both are read; the second is written, since it says which box
    is which. A box without a label has that of a question about one category.

    Source: the README of GLM-V by Z.ai, section "Grounding" (questions about one category and about expressions,
        special tokens, brackets, frame); its skill "glmv-grounding" (JSON with ``bbox_2d`` and ``label``). The question
        about several categories is ours.

    Example:
        >>> from vr1.types import as_boxes
        >>> family = GLM4V()
        >>> family.write(as_boxes([[10, 20, 30, 40]]), ["cat"])
        '<|begin_of_box|>[\n\t{"bbox_2d": [10, 20, 30, 40], "label": "cat"}\n]<|end_of_box|>'
        >>> family.read("It is at <|begin_of_box|>[[10,20,30,40]]<|end_of_box|>.").boxes.tolist()
        [[10.0, 20.0, 30.0, 40.0]]
    """

    model_types = ("glm4v", "glm4v_moe", "glm46v")
    frame = 1000.0
    markers = (_BEGIN, _END)
    implies_label = True
    wording = Wording(
        one="Help me to locate {categories} in the image and give me its bounding boxes.",
        several="Help me to locate every object of these categories in the image and give me its bounding boxes, as a"
        ' JSON list in which each entry has the box in the key "bbox_2d" and the category in the key "label":'
        " {categories}",
    )

    def read(self, completion: str) -> Answer:
        """Parse a completion; see `read_json_answer`."""
        # Positions in the text stay as they are.
        return read_json_answer(_MARKED.sub(_unmarked, completion), self.box_key, self.y_first)

    def write(self, boxes: Boxes, labels: Sequence[str]) -> str:
        """Write boxes ``[N, 4]`` of the family's frame and their N labels."""
        fenced = write_json_answer(boxes, labels, self.box_key, self.y_first)
        return _BEGIN + fenced.removeprefix("```json\n").removesuffix("\n```") + _END


def _unmarked(match: re.Match[str]) -> str:
    """A marked text of the same length: spaces for the special tokens and, without labels, square brackets."""
    inside = match[1] if '"' in match[1] else match[1].translate(_BRACKETS)
    return " " * len(_BEGIN) + inside + " " * (match.end() - match.end(1))
