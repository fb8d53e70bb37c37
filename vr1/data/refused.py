"""Images that the model's processor refuses, found by their sizes before training."""

import logging
from collections.abc import Callable

import numpy as np

from vr1.data.selection import SelectedSource
from vr1.data.source import DataReport, RecordSource
from vr1.data.validation import FaultyRecordsError, Problems

Refusal = Callable[[tuple[int, int]], str | None]
"""Why the model takes no images of a (width, height) in pixels; None if it does."""

REFUSED = "image that the model's processor refuses (remove, crop or pad it)"
_log = logging.getLogger(__name__)


class UsableSource(SelectedSource):
    """The records of a source of which the model makes a prompt.

    Args:
        source: R records.
        rows: ``[S]`` int64 rows of ``source``.
        problems: the records that are left out.
    """

    def __init__(self, source: RecordSource, rows: np.ndarray, problems: Problems) -> None:
        super().__init__(source, rows)
        counts = source.object_counts
        self.report = DataReport(
            records=len(rows),
            images=len(rows),
            objects=0 if counts is None else int(counts[rows].sum()),
            problems=problems,
            notes=(),
        )

    def reports(self) -> list[DataReport]:
        """The reports of the source, and of what is left out of it."""
        return [*super().reports(), self.report]


def leave_out_refused(source: RecordSource, refusal: Refusal, *, skip: bool) -> RecordSource:
    """The records of a source without those of which the model refuses an image.

    Args:
        source: R records, whose image sizes are known.
        refusal: why the model takes no images of a size.
        skip: leave them out with a warning, in place of an error.

    Raises:
        FaultyRecordsError: the model refuses an image, and none is left out; or it refuses all.
    """
    assert source.image_sizes is not None
    sizes, size_of = np.unique(source.image_sizes, axis=0, return_inverse=True)
    reasons = [refusal((int(width), int(height))) for width, height in sizes]
    refused = np.array([reason is not None for reason in reasons], np.bool_)[size_of.reshape(-1)]
    # What is wrong with a record that is refused for a further image of its prompt, not for its own.
    further: dict[int, str] = {}
    for row, others in enumerate(source.reference_sizes):
        for number, (width, height) in enumerate(others, start=1):
            if not refused[row] and (reason := refusal((width, height))) is not None:
                refused[row], further[row] = True, f"further image {number}, {width} x {height}: {reason}"
    if not refused.any():
        return source
    problems = Problems("images and the model")
    for row in np.flatnonzero(refused).tolist():
        width, height = source.image_sizes[row].tolist()
        fault = further.get(row, f"{width} x {height}: {reasons[size_of.reshape(-1)[row]]}")
        problems.add(REFUSED, f"{source.origin(row)}, {fault}")
    if not skip or refused.all():
        raise FaultyRecordsError(problems)
    _log.warning("left out of %s", problems)
    return UsableSource(source, np.flatnonzero(~refused), problems)
