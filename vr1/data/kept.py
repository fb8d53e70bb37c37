"""Records kept in memory once they have been read, images decoded."""

from typing import Any

from torch.utils.data import Dataset

from vr1.records import DetectionRecord


class KeptRecords(Dataset[DetectionRecord]):
    """A source whose first records that are asked for are read once.

    None is ever dropped for another: where records come in a random order every epoch, those that stay are worth as
    much as any, and the least recently read one is as likely to be next.

    Args:
        source: records by index.
        most: how many are kept, by each process that reads.

    Example:
        >>> from vr1.data import SceneSource
        >>> kept = KeptRecords(SceneSource(length=3), most=2)
        >>> kept[0] is kept[0], kept[1] is kept[1], kept[2] is kept[2]
        (True, True, False)
    """

    def __init__(self, source: Any, most: int) -> None:
        self.source, self.most = source, most
        self._kept: dict[int, DetectionRecord] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> DetectionRecord:
        """Read record ``index``, or take it from memory.

        Raises:
            IndexError: outside the data set.
        """
        if (record := self._kept.get(index)) is None:
            record = self.source[index]
            if len(self._kept) < self.most:
                record.image.load()
                self._kept[index] = record
        return record
