"""Vision-R1-Data as a LightningDataModule."""

from typing import Any, Literal

import numpy as np

from vr1.data.datamodule import MissingSplitError, RecordDataModule, Source, Split
from vr1.data.hub_table import load_table
from vr1.data.selection import SelectedSource, Selection, select
from vr1.data.vision_r1 import VisionR1Source
from vr1.data.vision_r1_stream import VisionR1Stream

# Rows of a stream that are held to be drawn from, with their images undecoded.
_BUFFER = 1000


class VisionR1DataModule(RecordDataModule):
    """The training data that the authors of Vision-R1 released, or any data set with the same columns.

    It needs the ``datasets`` library: ``pip install 'vr1[datasets]'``.

    Args:
        path: name on the hub, or a local folder or file: parquet, arrow, or what ``save_to_disk`` wrote.
        split: the split of the data set to read.
        val_records: records kept back from training, to validate and test on; drawn by the seed.
        bad_records: refuse faulty records before training, or leave them out, counted and reported (``skip``).
        selection: which training records, in which order; the released code takes 1 to 30 objects.
        streaming: read the data set as a stream, for one that is larger than the disk; see `VisionR1Stream`. The order
            is then that of the stream, mixed within a buffer where ``shuffle`` is set, the same in every epoch.
        records: how many training records an epoch of a stream has; None takes what the data set says of itself.
        loading: batch sizes, workers, order and seed; see `RecordDataModule`.
    """

    def __init__(
        self,
        path: str = "JefferyZhan/Vision-R1-Data",
        split: str = "train",
        val_records: int = 200,
        bad_records: Literal["error", "skip"] = "error",
        selection: Selection = Selection(min_objects=1, max_objects=30),  # noqa: B008 - frozen, so safe to share
        streaming: bool = False,
        records: int | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        if val_records < 0:
            raise ValueError(f"data: val_records={val_records} must not be negative")
        self.path, self.split, self.val_records = path, split, val_records
        self.bad_records, self.selection = bad_records, selection
        self.shuffle = self.shuffle and not selection.curriculum
        self.streaming, self.records, self._mixed = streaming, records, self.shuffle
        if streaming:
            if selection.curriculum or selection.hard_share is not None:
                raise ValueError(
                    f"data.selection={selection}: a stream does not know how many objects later records have; leave"
                    " curriculum and hard_share out, or set streaming: false"
                )
            if self.keep:
                raise ValueError(
                    f"data.keep={self.keep}: a stream is read from front to back every time; set it to 0, or streaming:"
                    " false"
                )
            # Places of a stream are asked for in order; what mixes it is its own buffer.
            self.shuffle = False
        self._source: VisionR1Source | None = None

    def build(self, split: Split) -> Source:
        """The training records, or those kept back.

        Raises:
            MissingSplitError: nothing is kept back, or all of it.
            ValueError: the data set cannot be read or is faulty.
        """
        if self.streaming:
            return self._stream(split)
        if self._source is None:
            self._source = VisionR1Source(load_table(self.path, self.split), self.path, self.bad_records)  # type: ignore[arg-type]
        source = self._source
        order = np.random.default_rng(self.seed).permutation(len(source))
        rows = order[: self.val_records] if split != "train" else order[self.val_records :]
        if not len(rows):
            raise MissingSplitError(
                f"{self.path}: val_records={self.val_records} of {len(source)} records leaves none for {split};"
                " change it"
            )
        return select(SelectedSource(source, np.sort(rows)), self.selection, split, self.seed)

    def _stream(self, split: Split) -> Source:
        table = load_table(self.path, self.split, streaming=True)
        if split != "train":
            return VisionR1Stream(table.take(self.val_records), self.path, self.val_records, self.bad_records)  # type: ignore[arg-type]
        known = (table.info.splits or {}).get(self.split)
        records = self.records or (known.num_examples - self.val_records if known is not None else 0)
        if records < 1:
            raise ValueError(
                f"{self.path}: the data set does not say how many records it has; set data.records to the number of"
                " training records an epoch"
            )
        table = table.skip(self.val_records)
        if self._mixed:
            table = table.shuffle(seed=self.seed, buffer_size=_BUFFER)
        limits = {"min_objects": self.selection.min_objects, "max_objects": self.selection.max_objects}
        return VisionR1Stream(table, self.path, records, self.bad_records, **limits)  # type: ignore[arg-type]
