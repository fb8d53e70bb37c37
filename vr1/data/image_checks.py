"""Checks of the images that annotations list: whether the files exist, and whether their sizes are right."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vr1.data.annotations import AnnotationTable
from vr1.data.images import ImageError, ImageHeader, read_header
from vr1.data.validation import Problems
from vr1.errors import UserError

WRONG_SIZE = "image whose size in the annotations is not that of the file"


def check_images(table: AnnotationTable, folder: Path, header_checks: int, problems: Problems) -> NDArray[np.bool_]:
    """Find missing files and wrong sizes.

    Every file is checked, by listing each folder once. Sizes are compared for ``header_checks`` images spread evenly
    over the table, since opening 100,000 files takes minutes on a network drive; a source compares the others when it
    decodes them.

    Args:
        table: I images.
        folder: the folder of images.
        header_checks: number of headers to read.
        problems: where faults are added.

    Returns:
        ``[I]`` bool, true where there is no fault.

    Raises:
        UserError: if the folder is missing.
    """
    if not folder.is_dir():
        raise UserError(f"images={folder}: no such folder; check the path")
    present = _files_present(folder, table.file_names)
    for row in np.flatnonzero(~present):
        name = table.file_names[row]
        problems.add("image file missing", f"{name} (id {table.image_ids[row]})", name)
    is_valid = present.copy()
    candidates = np.flatnonzero(present)
    spread = np.linspace(0, len(candidates) - 1, min(header_checks, len(candidates))).round().astype(int)
    for row in candidates[spread]:
        path = folder / table.file_names[row]
        try:
            fault = size_fault(path, read_header(path), tuple(table.sizes[row].tolist()))
        except ImageError as error:
            is_valid[row] = False
            problems.add("image file unreadable", str(error), table.file_names[row])
            continue
        if fault:
            is_valid[row] = False
            problems.add(WRONG_SIZE, fault, table.file_names[row])
    return is_valid


def size_fault(path: Path, header: ImageHeader, size: tuple[int, int]) -> str | None:
    """What is wrong with the size that the annotations give for a file, or None.

    The size of the upright image is right. The size as stored is right as well: then the annotations ignore the EXIF
    orientation, and the boxes have to be rotated with the image.

    Example:
        >>> rotated = ImageHeader(stored_size=(40, 30), orientation=6)
        >>> size_fault(Path("a.jpg"), rotated, (30, 40)), size_fault(Path("a.jpg"), rotated, (40, 30))
        (None, None)
        >>> size_fault(Path("a.jpg"), rotated, (80, 60))
        'a.jpg is 30 x 40, the annotations say 80 x 60'
    """
    if size in (header.size, header.stored_size):
        return None
    return f"{path} is {header.size[0]} x {header.size[1]}, the annotations say {size[0]} x {size[1]}"


def _files_present(folder: Path, names: list[str]) -> NDArray[np.bool_]:
    listings: dict[str, set[str]] = {}
    present = np.zeros(len(names), np.bool_)
    for row, name in enumerate(names):
        parent, leaf = os.path.split(os.path.join(folder, name))
        if parent not in listings:
            listings[parent] = _listing(parent)
        present[row] = leaf in listings[parent]
    return present


def _listing(folder: str) -> set[str]:
    if not os.path.isdir(folder):
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if not entry.is_dir()}
