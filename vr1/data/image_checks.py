"""Checks of images: those that a COCO file lists against those that are there, and damaged ones while training."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vr1.data.annotations import CocoTable
from vr1.data.images import ImageError, ImageHeader, read_header
from vr1.data.validation import Problems
from vr1.errors import UserError
from vr1.types import DetectionRecord

WRONG_SIZE = "image whose size in the annotations is not that of the file"


def check_images(table: CocoTable, folder: Path, header_checks: int, problems: Problems) -> NDArray[np.bool_]:
    """Find missing files and wrong sizes.

    Every file is looked for, by listing each folder once. Sizes are compared for ``header_checks`` images spread evenly
    over the table, since opening 100,000 files takes minutes on a network drive; a source compares the others as it
    decodes them.

    Args:
        table: I images.
        folder: the folder of images.
        header_checks: number of headers to read.
        problems: takes the faults.

    Returns:
        ``[I]`` true where no fault was found.

    Raises:
        UserError: if the folder is missing.
    """
    if not folder.is_dir():
        raise UserError(f"images={folder}: no such folder; check the path")
    present = _files_present(folder, table.file_names)
    for row in np.flatnonzero(~present):
        problems.add("image file missing", f"{table.file_names[row]} (id {table.image_ids[row]})")
    sound = present.copy()
    candidates = np.flatnonzero(present)
    spread = np.linspace(0, len(candidates) - 1, min(header_checks, len(candidates))).round().astype(int)
    for row in candidates[spread]:
        path = folder / table.file_names[row]
        try:
            fault = size_fault(path, read_header(path), tuple(table.sizes[row].tolist()))
        except ImageError as error:
            sound[row] = False
            problems.add("image file unreadable", str(error))
            continue
        if fault:
            sound[row] = False
            problems.add(WRONG_SIZE, fault)
    return sound


def size_fault(path: Path, header: ImageHeader, size: tuple[int, int]) -> str | None:
    """What is wrong with the size that the annotations give for a file, or None.

    Right is the size of the upright picture. The size as stored is right as well: then whoever made them did not
    look at the EXIF orientation, and the boxes are to be turned with the picture.

    Example:
        >>> lying = ImageHeader(stored_size=(40, 30), orientation=6)
        >>> size_fault(Path("a.jpg"), lying, (30, 40)), size_fault(Path("a.jpg"), lying, (40, 30))
        (None, None)
        >>> size_fault(Path("a.jpg"), lying, (80, 60))
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


_log = logging.getLogger(__name__)


def decode_or_next(decode: Callable[[int], DetectionRecord], index: int, length: int, skip: bool) -> DetectionRecord:
    """Decode one record, or the next that can be.

    Args:
        decode: makes the record of a row, 0 to ``length - 1``.
        index: the record wanted; a negative one counts from the end.
        length: number of records, at least 1.
        skip: whether another record may stand in.

    Raises:
        IndexError: if there is no such record.
        ImageError: if its image cannot be decoded, and none may stand in or none can be decoded.
    """
    if not -length <= index < length:
        raise IndexError(f"record {index} of {length}")
    for offset in range(length):
        try:
            return decode((index + offset) % length)
        except ImageError as error:
            if not skip or offset == length - 1:
                raise
            _log.warning("%s; the next record takes its place (bad_records: skip)", error)
    raise AssertionError("a source has at least one record")
