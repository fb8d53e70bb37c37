"""Which questions are asked about the images of an annotated data set."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vr1.data.annotations import AnnotationTable, plain_label
from vr1.data.validation import SHOWN
from vr1.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """Settings of the questions.

    Args:
        task: for ``detection`` one question an image, which names every category; for ``grounding`` one question for
            each category on each image, which names that category alone.
        empty_images: keep images without objects, to be answered with an empty list, or leave them out (``skip``).
        negatives: share of grounding questions for a category that is not in the image. They are drawn from the images
            that ``empty_images`` leaves.
        categories: the categories to name, in this order, instead of all that have an object. Objects of other
            categories do not count then.

    Raises:
        UserError: a setting is out of range, or does not go with another one.
    """

    task: Literal["detection", "grounding"] = "detection"
    empty_images: Literal["keep", "skip"] = "keep"
    negatives: float = 0.0
    categories: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.task not in ("detection", "grounding"):
            raise UserError(f"data.task={self.task!r}: choose detection or grounding")
        if self.empty_images not in ("keep", "skip"):
            raise UserError(f"data.empty_images={self.empty_images!r}: choose keep or skip")
        if not (math.isfinite(self.negatives) and 0 <= self.negatives < 1):
            raise UserError(f"data.negatives={self.negatives}: give the share of negative questions, from 0 to below 1")
        if self.negatives and self.task == "detection":
            raise UserError(
                f"data.negatives={self.negatives}: only task: grounding has questions for what is absent; in detection,"
                " images without objects are the negatives (empty_images: keep)"
            )

    def choose_categories(
        self, table: AnnotationTable, annotations: Path, notes: list[str], training: Sequence[str] | None = None
    ) -> AnnotationTable:
        """The table of the categories that questions name.

        Args:
            table: everything in the file.
            annotations: the file, for messages.
            notes: where it is added what is left out.
            training: the categories of the training questions, of which the file may have a part only; None where the
                file is that of the training, or there is none.

        Raises:
            UserError: a category of the settings is not in the file or named twice, or the file has no object.
        """
        if self.categories is None and training:
            return _asked_in_training(table, training, notes)
        if self.categories is None:
            return _used_categories(table, annotations, notes)
        rows = {name.casefold(): row for row, name in enumerate(table.categories)}
        folded = [plain_label(name).casefold() for name in self.categories]
        unknown = [name for name, key in zip(self.categories, folded, strict=True) if key not in rows]
        if unknown or len(set(folded)) < len(folded) or not folded:
            state = f"{', '.join(unknown)} not in the file" if unknown else "empty, or a name twice"
            raise UserError(
                f"data.categories={list(self.categories)}: {state}; choose among those of {annotations}:"
                f" {', '.join(table.categories)}"
            )
        chosen = table.keep_categories([rows[key] for key in folded])
        if left_out := len(table.areas) - len(chosen.areas):
            notes.append(f"{left_out} objects are of categories that no question names (categories)")
        return chosen

    def choose_images(self, table: AnnotationTable, notes: list[str]) -> AnnotationTable:
        """The table of the images that questions may be about."""
        if self.empty_images == "keep":
            return table
        has_objects = table.objects_per_image() > 0
        if not has_objects.all():
            notes.append(f"{(~has_objects).sum()} images without objects are left out (empty_images: skip)")
        return table.keep_images(has_objects)

    def of(self, table: AnnotationTable, seed: int, notes: list[str]) -> NDArray[np.int64]:
        """The questions about the images of a table.

        Args:
            table: I images, K categories.
            seed: draws the negatives.
            notes: where it is added what is left out.

        Returns:
            ``[Q, 2]`` int64 rows of the image and of the category, in the order of the table; a category of -1 stands
            for all of them.

        Raises:
            UserError: negatives are set, and every category is on every image.
        """
        if self.task == "detection":
            return np.stack([np.arange(len(table)), np.full(len(table), -1)], axis=1)
        width = max(len(table.categories), 1)
        pairs = table.image_rows * width + table.category_rows
        present, crowd = np.unique(pairs[~table.crowd]), np.unique(pairs[table.crowd])
        # With a crowd region alone there is no box to answer with, and "nothing" would be wrong.
        crowd_only = np.setdiff1d(crowd, present, assume_unique=True)
        if len(crowd_only):
            notes.append(f"{len(crowd_only)} pairs of image and category have no question: crowd regions only")
        if self.negatives:
            absent = self._absent(len(table) * width, present, crowd_only, np.random.default_rng(seed), notes)
            present = np.sort(np.concatenate([present, absent]))
        return np.stack([present // width, present % width], axis=1)

    def _absent(
        self,
        pairs: int,
        present: NDArray[np.int64],
        crowd_only: NDArray[np.int64],
        rng: np.random.Generator,
        notes: list[str],
    ) -> NDArray[np.int64]:
        """Pairs of an image and a category that it does not show."""
        # Drawn from all pairs at once, so that none comes twice; a million pairs take a millisecond.
        is_absent = np.ones(pairs, np.bool_)
        is_absent[present] = is_absent[crowd_only] = False
        candidates = np.flatnonzero(is_absent)
        number = max(1, round(len(present) * self.negatives / (1 - self.negatives)))
        if not len(candidates):
            raise UserError(
                f"data.negatives={self.negatives}: every category is on every image, so no question can be for"
                " something absent; set negatives: 0 or add images without objects"
            )
        if number > len(candidates):
            notes.append(
                f"only {len(candidates)} negative questions are possible; negatives={self.negatives} sets {number}"
            )
        return rng.choice(candidates, min(number, len(candidates)), replace=False)


def _asked_in_training(table: AnnotationTable, training: Sequence[str], notes: list[str]) -> AnnotationTable:
    """The table of the categories of the training, in their order, and of others that have an object, after them."""
    table = table.with_categories(training)
    rows = {name.casefold(): row for row, name in enumerate(table.categories)}
    chosen = [rows[name.casefold()] for name in training]
    used = set(np.unique(table.category_rows).tolist())
    if new := sorted(used - set(chosen)):
        names = ", ".join(table.categories[row] for row in new[:SHOWN]) + (", ..." if len(new) > SHOWN else "")
        notes.append(f"categories that no training question names, named here: {names}")
    return table.keep_categories([*chosen, *new])


def _used_categories(table: AnnotationTable, annotations: Path, notes: list[str]) -> AnnotationTable:
    used = np.unique(table.category_rows).tolist()
    if len(table) and not used:
        raise UserError(
            f"annotations={annotations}: none of its {len(table)} images has an object, so there is no category to ask"
            " about; give the right file, or name the categories in the setting categories"
        )
    # As a set, since there are a hundred thousand referring expressions.
    is_used = set(used)
    if unused := [name for row, name in enumerate(table.categories) if row not in is_used]:
        more = ", ..." if len(unused) > SHOWN else ""
        notes.append(f"categories without any object, which no question names: {', '.join(unused[:SHOWN])}{more}")
    return table.keep_categories(used)
