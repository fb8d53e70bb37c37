"""One line of a file of referring expressions: its image, its questions, and the box that each is answered with.

The fields of RefCOCO slices, of VLM-R1's files, of conversations (LLaVA, InternVL) and of messages (ms-swift) are read.
"""

import json
import re
from typing import Any, NamedTuple

from vr1.data.annotations import plain_label
from vr1.data.question_text import parse_question
from vr1.data.validation import is_text, number, numbers

EXPRESSIONS = ("expression", "normal_caption", "caption", "problem", "prompt", "question")
BOXES = ("bbox_xyxy", "solution", "bbox")
_BOX_KEYS = ("bbox_2d", "bbox", "box", "box_2d", "bbox_xyxy")

_NUMBER = r"\s*(-?\d+(?:\.\d+)?(?:[eE]-?\d+)?)\s*"
# Four numbers in one pair of brackets, or in two: [x1, y1, x2, y2], (x1,y1),(x2,y2), [[x1, y1], [x2, y2]].
_FOUR = re.compile(rf"[\[(]{_NUMBER},{_NUMBER}(?:,|[\])]\s*,?\s*[\[(]){_NUMBER},{_NUMBER}[\])]")
_REF = re.compile(
    r"<(?P<tag>ref|p|expr)>(?P<plain>.*?)</(?P=tag)>|<\|object_ref_start\|>(?P<qwen>.*?)<\|object_ref_end\|>"
    r"|<\|ref\|>(?P<deepseek>.*?)<\|/ref\|>",
    re.DOTALL,
)
_IMAGE = re.compile(
    r"<image>|<img>.*?</img>|<\|vision_start\|>.*?<\|vision_end\|>|<IMG_CONTEXT>|\bPicture \d+:", re.DOTALL
)
_PER_MILLE = ("<box>", "<|box_start|>", "<|det|>")


class LineError(Exception):
    """A line that cannot be used; the message is the kind of fault."""


class Referred(NamedTuple):
    """One expression and the box that it refers to.

    Attributes:
        text: the expression.
        box: the four numbers as they are written, x first.
        says_format: the field says that they are corners.
        per_mille: the way in which they are written belongs to models that count in 0..1000.
    """

    text: str
    box: list[float]
    says_format: bool
    per_mille: bool = False


def images_of(item: dict[str, Any]) -> list[str]:
    """The names of the images, in the order of the line.

    Raises:
        LineError: there is none, or one has no name.

    Example:
        >>> images_of({"images": ["crop.jpg", {"path": "scene.jpg"}]})
        ['crop.jpg', 'scene.jpg']
    """
    found = next((item[key] for key in ("image", "file_name", "images") if item.get(key)), None)
    images = [
        image.get("path") if isinstance(image, dict) else image
        for image in (found if isinstance(found, list) else [found])
    ]
    if not all(map(is_text, images)):
        raise LineError("line without an 'image'")
    return [str(image) for image in images]


def referred(item: dict[str, Any]) -> list[Referred]:
    """The expressions of a line with their boxes: one, or one for each question of a conversation.

    Raises:
        LineError: a question has no expression, or its answer is not one box.

    Example:
        >>> referred({"expression": "player 23", "solution": '[{"bbox_2d": [1, 2, 3, 4], "label": "player 23"}]'})
        [Referred(text='player 23', box=[1, 2, 3, 4], says_format=True, per_mille=False)]
    """
    turns = _turns(item)
    text = next((item[key] for key in EXPRESSIONS if is_text(item.get(key))), None)
    field = next((key for key in BOXES if item.get(key) is not None), None)
    if field is None and text is None and len(turns) > 1:
        return [_pair(question, answer) for question, answer in turns]
    if text is None:
        text = turns[0][0] if turns else None
    expression = _expression(text)
    if field is not None:
        return [Referred(expression, *_box(item[field], says_format=field != "bbox"))]
    return [Referred(expression, *_box(turns[0][1] if turns else None, says_format=True))]


def _pair(question: Any, answer: Any) -> Referred:
    return Referred(_expression(question), *_box(answer, says_format=True))


def _turns(item: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Questions and answers of conversations, each a pair of texts; an instruction before them is passed over."""
    turns: list[Any] = next((item[key] for key in ("conversations", "messages") if isinstance(item.get(key), list)), [])
    texts = []
    for turn in turns:
        if not isinstance(turn, dict) or turn.get("from", turn.get("role")) == "system":
            continue
        content = turn.get("value", turn.get("content"))
        if isinstance(content, list):
            parts = [part.get("text") for part in content if isinstance(part, dict) and is_text(part.get("text"))]
            content = " ".join(map(str, parts))
        texts.append(content)
    return [(texts[at], texts[at + 1] if at + 1 < len(texts) else None) for at in range(0, len(texts), 2)]


def _expression(text: Any) -> str:
    if not isinstance(text, str):
        raise LineError(f"line without an expression ({', '.join(EXPRESSIONS)}, conversations or messages)")
    text = _IMAGE.sub(" ", text)
    tagged = [part for match in _REF.finditer(text) for part in match.group("plain", "qwen", "deepseek") if part]
    if len(tagged) == 1 and tagged[0].strip():
        return plain_label(tagged[0])
    parsed = parse_question(text)
    if parsed is not None and len(parsed.categories) == 1:
        return parsed.categories[0]
    if not (plain := plain_label(text)):
        raise LineError(f"line without an expression ({', '.join(EXPRESSIONS)}, conversations or messages)")
    return plain


def _box(value: Any, *, says_format: bool) -> tuple[list[float], bool, bool]:
    """The one box of an answer, whether it says its format, and whether it is counted in 0..1000."""
    found: list[list[float]] = []
    per_mille = False
    if isinstance(value, str):
        # What is thought before an answer is none.
        value = value.rpartition("</think>")[2].rpartition("<answer>")[2]
        per_mille = any(mark in value for mark in _PER_MILLE)
        found = [[float(part) for part in match.groups()] for match in _FOUR.finditer(value)]
        # JSON says which number is first; what stands after it may be a further box.
        if len(boxes := _listed(_json_in(value))) >= max(len(found), 1):
            return _one(boxes, says_format, per_mille)
        if not found and (plain := numbers(re.split(r"[\s,]+", value.strip()), 4)):
            found = [plain]
        return _one([(box, False) for box in found], says_format, per_mille)
    return _one(_listed(value), says_format, per_mille)


def _one(boxes: list[tuple[list[float], bool]], says_format: bool, per_mille: bool) -> tuple[list[float], bool, bool]:
    if not boxes:
        raise LineError(f"line without four numbers in {', '.join(BOXES)} or the answer of its conversation")
    if len(boxes) > 1:
        raise LineError("line with several boxes, where an expression refers to one object")
    box, y_first = boxes[0]
    # Gemini and Gemma write y first, in 0..1000.
    return ([box[1], box[0], box[3], box[2]] if y_first else box), says_format, per_mille or y_first


def _json_in(text: str) -> Any:
    """What a text holds as JSON, with or without a fence around it and words before it; None where there is none."""
    start = min((at for mark in "[{" if (at := text.find(mark)) >= 0), default=-1)
    if start < 0:
        return None
    try:
        return json.JSONDecoder().raw_decode(text, start)[0]
    except (ValueError, RecursionError):
        return None


def _listed(value: Any) -> list[tuple[list[float], bool]]:
    """The boxes of a JSON value, and whether y comes first in each."""
    if isinstance(value, dict):
        key = next((key for key in _BOX_KEYS if key in value), None)
        return [(box, key == "box_2d") for box, _ in _listed(value[key])] if key is not None else []
    if not isinstance(value, list):
        return []
    if (box := numbers(value, 4)) is not None:
        return [(box, False)]
    # Two points of two numbers.
    if len(value) == 2 and all(isinstance(part, list) and numbers(part, 2) for part in value):
        return [([number(side) or 0.0 for part in value for side in part], False)]
    return [box for item in value for box in _listed(item)]
