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
            raise ValueError(
                f"negatives={negatives}: every category is on every image, so nothing absent can be asked for; set "
                "negatives: 0 or add images without objects"
            )
        if wanted > len(candidates):
            notes.append(f"only {len(candidates)} negative questions are possible, of {wanted} wanted")
        rng = np.random.default_rng(seed)
        drawn = rng.choice(candidates, min(wanted, len(candidates)), replace=False)
        asked = np.sort(np.concatenate([asked, drawn]))
    return np.stack([asked // width, asked % width], axis=1), notes
