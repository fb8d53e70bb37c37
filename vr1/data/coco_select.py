"""Takes the part of a COCO table that the settings ask for."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vr1.data.coco_splits import Portion
from vr1.data.coco_table import CocoTable
from vr1.data.problems import SHOWN


def choose_categories(table: CocoTable, wanted: Sequence[str] | None, annotations: Path, notes: list[str]) -> CocoTable:
    """The table of the categories to ask for.

    Args:
        table: everything in the file.
        wanted: names in the order of the question; None for all that have an object, in the order of the file.
        annotations: the file, for messages.
        notes: takes what is left out.

    Raises:
        ValueError: if a wanted name is not in the file or given twice, or the file has no object to name a category.
    """
    used = np.unique(table.category_rows).tolist()
    if wanted is None:
        if len(table) and not used:
            raise ValueError(
                f"annotations={annotations}: none of its {len(table)} images has an object, so there is no category to "
                "ask for; give the right file, or name the categories in the setting categories"
            )
        # As a set, since of referring expressions there are a hundred thousand.
        asked = set(used)
        if unused := [name for row, name in enumerate(table.categories) if row not in asked]:
            more = ", ..." if len(unused) > SHOWN else ""
            notes.append(f"categories without any object, not asked for: {', '.join(unused[:SHOWN])}{more}")
        return table.keep_categories(used)
    rows = {name.casefold(): row for row, name in enumerate(table.categories)}
    folded = [" ".join(name.split()).casefold() for name in wanted]
    unknown = [name for name, key in zip(wanted, folded, strict=True) if key not in rows]
    if unknown or len(set(folded)) < len(folded) or not folded:
        state = f"{', '.join(unknown)} not in the file" if unknown else "empty, or a name twice"
        raise ValueError(f"categories={list(wanted)}: {state}; {annotations} has {', '.join(table.categories)}")
    chosen = table.keep_categories([rows[key] for key in folded])
    if left_out := len(table.areas) - len(chosen.areas):
        notes.append(f"{left_out} objects are of categories that are not asked for")
    return chosen


def without_empty(table: CocoTable, notes: list[str]) -> CocoTable:
    """The table of the images that have objects."""
    keep = table.objects_per_image() > 0
    if not keep.all():
        notes.append(f"{(~keep).sum()} images without objects are left out (empty_images: skip)")
    return table.keep_images(keep)


def take_portion(table: CocoTable, portion: Portion, annotations: Path) -> CocoTable:
    """The table of the images of a portion.

    Raises:
        ValueError: if the file has too few images for the portion to hold one.
    """
    names = table.file_names
    chosen = portion.of(names)
    if names and not chosen:
        raise ValueError(
            f"annotations={annotations}: none of its {len(names)} images falls into the part {portion.start:g} to "
            f"{portion.stop:g} of them; a data set this small needs a file of its own for each split"
        )
    return table.keep_images(np.array([name in chosen for name in names], np.bool_))
