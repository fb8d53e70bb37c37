"""Lets the next good record stand in for one whose image turns out to be damaged."""

import logging
from collections.abc import Callable

from vr1.data.images import ImageError
from vr1.records import DetectionRecord

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
