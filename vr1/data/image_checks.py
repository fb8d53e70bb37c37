"""Checks of the images that annotations list: whether the files exist, and whether their sizes are right."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vr1.data.annotations import AnnotationTable
from vr1.data.image_files import ImageFolder
from vr1.data.images import ImageError, ImageHeader, read_header
from vr1.data.validation import SHOWN, Problems
from vr1.errors import UserError

WRONG_SIZE = "image whose size in the annotations is not that of the file"
TWO_SIZES = "image file under two image ids, of different sizes"


def check_images(
    table: AnnotationTable, folder: ImageFolder, header_checks: int, problems: Problems, notes: list[str]
) -> AnnotationTable:
    """Find missing files and wrong sizes, and merge images that are one file.

    Every file is checked, by listing each folder once. Sizes are compared for ``header_checks`` images spread evenly
    over the table, since opening 100,000 files takes minutes on a network drive; a source compares the others when it
    decodes them.

    Args:
        table: I images.
        folder: the folder of images.
        header_checks: number of headers to read.
        problems: where faults are added.
        notes: where it is added what is changed.

    Returns:
        The images without a fault, under the names of their files.

    Raises:
        UserError: if the folder is missing.
    """
    if not folder.folder.is_dir():
        raise UserError(f"images={folder.folder}: no such folder; check the path")
    found = folder.find_all(table.file_names)
    notes += found.notes()
    is_valid = np.array([file is not None for file in found.names], np.bool_)
    for row in np.flatnonzero(~is_valid):
        name = table.file_names[row]
        problems.add("image file missing", f"{name} (id {table.image_ids[row]})", name)
    files = [name if file is None else file for name, file in zip(table.file_names, found.names, strict=True)]
    table = replace(table, file_names=files).keep_images(is_valid)
    if not table.referring:
        table = _merge_same_files(table, problems, notes)
    return table.keep_images(_right_sizes(table, folder.folder, header_checks, problems))


def _merge_same_files(table: AnnotationTable, problems: Problems, notes: list[str]) -> AnnotationTable:
    """One image for each file: each of several ids may have a part of its objects."""
    first: dict[str, int] = {}
    rows = [first.setdefault(os.path.normpath(name), row) for row, name in enumerate(table.file_names)]
    into = np.array(rows, np.int64)
    others = np.flatnonzero(into != np.arange(len(table)))
    other_sizes = (table.sizes[others] != table.sizes[into[others]]).any(1)
    for row in others[other_sizes]:
        ids = f"ids {table.image_ids[into[row]]} and {table.image_ids[row]}"
        problems.add(TWO_SIZES, f"{table.file_names[row]}: {ids}", table.file_names[row])
    keep = ~np.isin(into, into[others[other_sizes]])
    names = list(dict.fromkeys(table.file_names[row] for row in others if keep[row]))
    if names:
        shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        notes.append(f"{len(names)} image files are listed under several image ids, whose objects are merged ({shown})")
    return table.keep_images(keep).merge_images((np.cumsum(keep) - 1)[into[keep]]) if len(others) else table


def _right_sizes(table: AnnotationTable, folder: Path, header_checks: int, problems: Problems) -> NDArray[np.bool_]:
    """``[I]`` bool, false where a header shows another size than the annotations, or cannot be read."""
    is_right = np.ones(len(table), np.bool_)
    for row in np.linspace(0, len(table) - 1, min(header_checks, len(table))).round().astype(int):
        path = folder / table.file_names[row]
        try:
            fault = size_fault(path, read_header(path), tuple(table.sizes[row].tolist()))
        except ImageError as error:
            is_right[row] = False
            problems.add("image file unreadable", str(error), table.file_names[row])
            continue
        if fault:
            is_right[row] = False
            problems.add(WRONG_SIZE, fault, table.file_names[row])
    return is_right


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
