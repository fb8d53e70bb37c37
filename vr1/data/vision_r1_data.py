"""Vision-R1-Data as a LightningDataModule."""

from typing import Any, Literal

import numpy as np

from vr1.data.datamodule import RecordDataModule, Source, Split
from vr1.data.hub_table import load_table
from vr1.data.selection import SelectedSource, Selection, select
from vr1.data.vision_r1 import VisionR1Source


class VisionR1DataModule(RecordDataModule):
    """The training data that the authors of Vision-R1 released, or any data set with the same columns.

    It needs the ``datasets`` library: ``pip install 'vr1[datasets]'``.

    Args:
        path: name on the hub, or a local folder or file: parquet, arrow, or what ``save_to_disk`` wrote.
        split: the split of the data set to read.
        val_records: records kept back from training, to validate and test on; drawn by the seed.
        bad_records: refuse faulty records before training, or leave them out, counted and reported (``skip``).
        selection: which training records, in which order; the released code takes 1 to 30 objects.
        loading: batch sizes, workers, order and seed; see `RecordDataModule`.
    """

    def __init__(
        self,
        path: str = "JefferyZhan/Vision-R1-Data",
        split: str = "train",
        val_records: int = 200,
        bad_records: Literal["error", "skip"] = "error",
        selection: Selection = Selection(min_objects=1, max_objects=30),  # noqa: B008 - frozen, so safe to share
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        if val_records < 0:
            raise ValueError(f"data: val_records={val_records} must not be negative")
        self.path, self.split, self.val_records = path, split, val_records
        self.bad_records, self.selection = bad_records, selection
        self.shuffle = self.shuffle and not selection.curriculum
        self._source: VisionR1Source | None = None

    def build(self, split: Split) -> Source:
        """The training records, or those kept back.

        Raises:
            ValueError: the data set cannot be read or is faulty, or too small for what is kept back.
        """
        if self._source is None:
            self._source = VisionR1Source(load_table(self.path, self.split), self.path, self.bad_records)  # type: ignore[arg-type]
        source = self._source
        order = np.random.default_rng(self.seed).permutation(len(source))
        rows = order[: self.val_records] if split != "train" else order[self.val_records :]
        if not len(rows):
            raise ValueError(
                f"{self.path}: val_records={self.val_records} of {len(source)} records leaves none for {split};"
                " change it"
            )
        return select(SelectedSource(source, np.sort(rows)), self.selection, split, self.seed)
