"""Reads the questions of published data sets back: which categories, or which expression, a text is about."""

import re
from collections.abc import Collection
from typing import NamedTuple

from vr1.data.annotations import plain_label

_LIST = re.compile(r"the category set includes (?P<names>.+?)\.?(?: The output format .*)?", re.IGNORECASE | re.DOTALL)
_CATEGORY = [
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        r"Locate the exact position of (?P<names>.+?) in the picture, if (?:you can|possible)\.?",
        r"Locate every (?P<names>.+?) in the image and output the coordinates in JSON format\.?",
    )
]
_EXPRESSION = [
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        r"Can you point out (?P<names>.+?) in the image and provide the coordinates of its location\?",
        r"Please provide the bounding box coordinates? of the region this sentence describes:(?P<names>.+?)\.?",
    )
]


class ParsedQuestion(NamedTuple):
    """What a question is about.

    Attributes:
        categories: the categories, or the one expression, in the order of the question.
        referring: it is an expression for one object, not a category.
    """

    categories: tuple[str, ...]
    referring: bool = False


def parse_question(question: str, known: Collection[str] = ()) -> ParsedQuestion | None:
    """Read a question of Griffon, Qwen2.5-VL or VLM-R1.

    Args:
        question: the text, with or without an ``<image>`` in front.
        known: names that may be in the list of categories, for those that contain a comma themselves.

    Returns:
        What it is about; None where the template is not known.

    Source: Vision-R1, arXiv 2503.18013, Table 8 (templates of each model and task).

    Example:
        >>> parse_question("Examine the image for any objects from the category set. Report the coordinates of each "
        ...     "detected object. The category set includes cat, hot dog.").categories
        ('cat', 'hot dog')
        >>> parse_question(
        ...     "Can you point out lady on the left in the image and provide the coordinates of its location?")
        ParsedQuestion(categories=('lady on the left',), referring=True)
        >>> parse_question("What is this?") is None
        True
    """
    text = plain_label(question.replace("<image>", " "))
    start = text.lower().find("the category set includes ")
    if start >= 0 and (match := _LIST.fullmatch(text[start:])):
        return ParsedQuestion(_split(match["names"], known))
    for templates, referring in ((_CATEGORY, False), (_EXPRESSION, True)):
        for template in templates:
            if match := template.fullmatch(text):
                return ParsedQuestion((match["names"].strip(),), referring)
    return None


def _split(listed: str, known: Collection[str]) -> tuple[str, ...]:
    """The names of a list with commas, where those that are known to contain a comma stay in one piece."""
    with_commas = sorted((name for name in known if ", " in name), key=len, reverse=True)
    pattern = "|".join([*map(re.escape, with_commas), r"[^,]+"])
    names = [name.strip() for name in re.findall(rf"(?:^|, )({pattern})(?=, |$)", listed)]
    return tuple(dict.fromkeys(names if ", ".join(names) == listed else listed.split(", ")))
