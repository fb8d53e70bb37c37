"""Training images in both orientations: each as it is and mirrored from left to right."""

from dataclasses import replace
from typing import Any

from PIL import ImageOps

from vr1.data.source import DataReport, RecordSource
from vr1.errors import UserError
from vr1.types import DetectionRecord

# Added to the id of a mirrored image: no data set has two images whose ids are so far apart.
_ID_OFFSET = 2**53


class MirroredSource(RecordSource):
    """Each record of a source twice, one after the other: as it is, and with its image mirrored from left to right.

    Further images of a prompt (``references``) stay as they are.

    Args:
        source: R records, a `RecordSource` or any data set of records; the result has 2 R.

    Example:
        >>> from vr1.data.synthetic import SceneSource
        >>> scenes = MirroredSource(SceneSource(3))
        >>> len(scenes), scenes.origin(1), scenes[1].origin
        (6, 'record 0 (mirrored)', 'scene train/0/0 (mirrored)')
        >>> left, right = scenes[0].boxes_xyxy[0], scenes[1].boxes_xyxy[0]
        >>> bool(left[0] + right[2] == scenes[0].image.width)
        True
    """

    def __init__(self, source: Any) -> None:
        self.source = source
        if not isinstance(source, RecordSource):
            return
        if source.object_counts is not None:
            self.object_counts = source.object_counts.repeat(2)
        if source.image_sizes is not None:
            self.image_sizes = source.image_sizes.repeat(2, axis=0)
        self.reference_sizes = [sizes for sizes in source.reference_sizes for _ in range(2)]

    def __len__(self) -> int:
        return 2 * len(self.source)

    def origin(self, index: int) -> str:
        """What the source calls the record, and whether it is mirrored."""
        row, is_mirrored = divmod(int(index), 2)
        name = self.source.origin(row) if isinstance(self.source, RecordSource) else f"record {row}"
        return f"{name} (mirrored)" if is_mirrored else name

    def reports(self) -> list[DataReport]:
        """The reports of the source."""
        return self.source.reports() if isinstance(self.source, RecordSource) else []

    def __getitem__(self, index: int) -> DetectionRecord:
        """Decode one record.

        Raises:
            IndexError: there is no such record.
            ImageError: its image cannot be used.
            UserError: it asks for an expression, which may say "left" or "right".
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        row, is_mirrored = divmod(index % len(self), 2)
        record: DetectionRecord = self.source[row]
        if record.referring:
            raise UserError(
                f"data.mirror: {record.origin} asks for an expression, {record.categories[0]!r}, which need not be true"
                " of a mirrored image; leave data.mirror out"
            )
        return mirrored(record) if is_mirrored else record


def mirrored(record: DetectionRecord) -> DetectionRecord:
    """A record with its image and its boxes mirrored from left to right, under an id of its own."""
    width = record.image.width
    return replace(
        record,
        image=ImageOps.mirror(record.image),
        boxes_xyxy=record.boxes_xyxy[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [width, 0, width, 0],
        image_id=record.image_id + _ID_OFFSET,
        origin=f"{record.origin} (mirrored)",
    )
