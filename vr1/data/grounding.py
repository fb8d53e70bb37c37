"""Which categories a grounding source asks for on which image."""

import numpy as np
from numpy.typing import NDArray

from vr1.data.coco_table import CocoTable


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
        ValueError: if negatives are asked for and every category is on every image.
    """
    present = np.zeros((len(table), len(table.categories)), np.bool_)
    crowd_only = present.copy()
    crowd_only[table.image_rows[table.crowd], table.category_rows[table.crowd]] = True
    present[table.image_rows[~table.crowd], table.category_rows[~table.crowd]] = True
    crowd_only &= ~present
    notes = []
    if crowd_only.any():
        notes.append(f"{crowd_only.sum()} pairs of image and category are not asked for: crowd regions only")
    questions = np.argwhere(present)
    if negatives > 0:
        absent = np.flatnonzero(~(present | crowd_only))
        wanted = max(1, round(len(questions) * negatives / (1 - negatives)))
        if not len(absent):
            raise ValueError(
                f"negatives={negatives}: every category is on every image, so nothing absent can be asked for; set "
                "negatives: 0 or add images without objects"
            )
        if wanted > len(absent):
            notes.append(f"only {len(absent)} negative questions are possible, of {wanted} wanted")
        drawn = np.random.default_rng(seed).choice(absent, min(wanted, len(absent)), replace=False)
        asked = present.copy()
        asked.flat[drawn] = True
        questions = np.argwhere(asked)
    return questions, notes
