"""Which categories a question is about: chosen for an image, or read from a worded question."""

import re
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from vr1.data.annotations import CocoTable
from vr1.errors import UserError


def grounding_questions(table: CocoTable, negatives: float, seed: int) -> tuple[NDArray[np.int64], list[str]]:
    """One question for each category on each image where it is, and a share of questions for what is not there.

    A category that an image has only as a crowd region is not asked for there: there is no box to answer with, and
    "nothing" would be wrong.

    Args:
        table: I images, K categories.
        negatives: share of all questions that ask for something absent, 0 to below 1.
        seed: draws the absent categories.

    Returns:
        ``[Q, 2]`` rows of the image and of the category, in the order of the table, and notes on what was left out.

    Raises:
        UserError: if negatives are asked for and every category is on every image.
    """
    width = max(len(table.categories), 1)
    pairs = table.image_rows * width + table.category_rows
    asked, crowd = np.unique(pairs[~table.crowd]), np.unique(pairs[table.crowd])
    crowd_only = np.setdiff1d(crowd, asked, assume_unique=True)
    notes = []
    if len(crowd_only):
        notes.append(f"{len(crowd_only)} pairs of image and category are not asked for: crowd regions only")
    if negatives > 0:
        # Drawn from all pairs at once, so that none comes twice; a million pairs take a millisecond.
        absent = np.ones(len(table) * width, np.bool_)
        absent[asked] = absent[crowd_only] = False
        candidates = np.flatnonzero(absent)
        wanted = max(1, round(len(asked) * negatives / (1 - negatives)))
        if not len(candidates):
            raise UserError(
                f"negatives={negatives}: every category is on every image, so nothing absent can be asked for; set "
                "negatives: 0 or add images without objects"
            )
        if wanted > len(candidates):
            notes.append(f"only {len(candidates)} negative questions are possible, of {wanted} wanted")
        rng = np.random.default_rng(seed)
        drawn = rng.choice(candidates, min(wanted, len(candidates)), replace=False)
        asked = np.sort(np.concatenate([asked, drawn]))
    return np.stack([asked // width, asked % width], axis=1), notes


_LIST = re.compile(r"the category set includes (?P<asked>.+?)\.?(?: The output format .*)?", re.IGNORECASE | re.DOTALL)
_CATEGORY = [
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        r"Locate the exact position of (?P<asked>.+?) in the picture, if (?:you can|possible)\.?",
        r"Locate every (?P<asked>.+?) in the image and output the coordinates in JSON format\.?",
    )
]
_EXPRESSION = [
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        r"Can you point out (?P<asked>.+?) in the image and provide the coordinates of its location\?",
        r"Please provide the bounding box coordinates? of the region this sentence describes:(?P<asked>.+?)\.?",
    )
]


def asked_for(question: str, known: Collection[str] = ()) -> tuple[str, ...] | None:
    """The categories, or the one expression, that a question of Griffon, Qwen2.5-VL or VLM-R1 asks for.

    Args:
        question: the text, with or without an ``<image>`` in front.
        known: names that may be in the list of categories, for those that hold a comma themselves.

    Returns:
        The names in the order of the question; None where the wording is not known.

    Source: Vision-R1, arXiv 2503.18013, Table 8 (templates of each model and task).

    Example:
        >>> asked_for("Examine the image for any objects from the category set. Report the coordinates of each "
        ...     "detected object. The category set includes cat, hot dog.")
        ('cat', 'hot dog')
        >>> asked_for("Can you point out lady on the left in the image and provide the coordinates of its location?")
        ('lady on the left',)
        >>> asked_for("What is this?") is None
        True
    """
    text = " ".join(question.replace("<image>", " ").split())
    start = text.lower().find("the category set includes ")
    if start >= 0 and (found := _LIST.fullmatch(text[start:])):
        return _split(found["asked"], known)
    for wording in (*_CATEGORY, *_EXPRESSION):
        if found := wording.fullmatch(text):
            return (found["asked"].strip(),)
    return None


def is_referring(question: str) -> bool:
    """Whether the words of a question are those for a referring expression, not for a category.

    Example:
        >>> is_referring("Can you point out lady on the left in the image and provide the coordinates of its location?")
        True
    """
    text = " ".join(question.replace("<image>", " ").split())
    return any(wording.fullmatch(text) for wording in _EXPRESSION)


def _split(listed: str, known: Collection[str]) -> tuple[str, ...]:
    """The names of a list with commas, where those that are known to hold a comma stay whole."""
    names = sorted((name for name in known if ", " in name), key=len, reverse=True)
    pattern = "|".join([*map(re.escape, names), r"[^,]+"])
    found = [name.strip() for name in re.findall(rf"(?:^|, )({pattern})(?=, |$)", listed)]
    return tuple(dict.fromkeys(found if ", ".join(found) == listed else listed.split(", ")))
