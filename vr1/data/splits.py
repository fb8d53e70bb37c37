"""The splits of a data set: how folders name them, and how one file without splits is divided by image."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vr1.data.annotations import AnnotationTable
from vr1.data.datamodule import MissingSplitError
from vr1.data.validation import Problems

SPLIT_NAMES = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
"""Names that folders and files use for a split, and the one name that this package uses for it."""
FOLDER_SPLITS = {"train": "train", "val": "valid", "test": "test", "predict": "test"}
"""The split of a folder that a data module reads for each of its own."""
SHARES = {"train": (0.0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1.0)}
"""The part of the images that each split takes where one file holds them all."""


class Portion(NamedTuple):
    """A part of the images of one file: shares ``start`` to ``stop`` (0 to 1) in an order drawn by ``seed``."""

    start: float
    stop: float
    seed: int = 0

    def of(self, names: Iterable[str]) -> set[str]:
        """The names of the images in this part.

        They are ordered by a hash of each, so that parts of one seed never share an image, whatever the order and
        number of the others' names.

        Example:
            >>> sorted(Portion(0.0, 0.5).of("abcd") | Portion(0.5, 1.0).of("dcba"))
            ['a', 'b', 'c', 'd']
        """
        order = sorted(names, key=lambda name: hashlib.sha256(f"{self.seed}:{name}".encode()).digest())
        return set(order[round(self.start * len(order)) : round(self.stop * len(order))])


def take_portion(
    table: AnnotationTable, problems: Problems, portion: Portion, annotations: Path
) -> tuple[AnnotationTable, Problems]:
    """The images of a portion, and their problems.

    Args:
        table: the valid images of the file.
        problems: the faults of the file. Each goes to exactly one portion: to that of its image, or to the first
            portion where the image is not known.
        portion: the part to take.
        annotations: the file, for messages.

    Raises:
        MissingSplitError: the file has too few images for the portion to hold one.
    """
    names = table.file_names
    chosen = portion.of(names)
    if names and not chosen:
        raise MissingSplitError(
            f"annotations={annotations}: none of its {len(names)} images falls into the part {portion.start:g} to "
            f"{portion.stop:g} of them; a data set this small needs a file of its own for each split"
        )
    left_out = {problem.image for problem in problems} - set(names) - {""}
    own = chosen | (portion.of([*names, *left_out]) & left_out)
    first = portion.start == 0
    own_problems = problems.filter(lambda problem: problem.image in own if problem.image else first)
    return table.keep_images(np.array([name in chosen for name in names], np.bool_)), own_problems
