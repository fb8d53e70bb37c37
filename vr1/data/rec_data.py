"""Referring expressions as a LightningDataModule."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

from vr1.data.coco import CocoSource
from vr1.data.datamodule import MissingSplitError, RecordDataModule, Source, Split
from vr1.data.rec_file import BoxFormat, read_rec
from vr1.data.selection import Selection, select
from vr1.data.sets import SetsSource


class RecDataModule(RecordDataModule):
    """Referring expressions (RefCOCO, RefCOCO+, RefCOCOg, or VLM-R1's files): one text, one box.

    Args:
        images: the folder to which the files' ``image`` is relative.
        train: files to train on, by name of the set.
        val: files to validate on.
        test: files to test and predict on; with the callback ``callbacks.Evaluation`` each is reported by its name.
        box_format: what a field named ``bbox`` holds, ``xyxy`` or ``xywh``; ``bbox_xyxy`` and ``solution`` are corners.
        bad_records: refuse faulty records before training, or leave them out, counted and reported (``skip``).
        selection: which training records, in which order.
        loading: batch sizes, workers, order and seed; see `RecordDataModule`.
    """

    def __init__(
        self,
        images: Path,
        train: dict[str, Path] | None = None,
        val: dict[str, Path] | None = None,
        test: dict[str, Path] | None = None,
        box_format: BoxFormat | None = None,
        bad_records: Literal["error", "skip"] = "error",
        selection: Selection = Selection(),  # noqa: B008 - a frozen dataclass is safe to share
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        if box_format not in (None, "xyxy", "xywh"):
            raise ValueError(f"data: box_format={box_format!r} must be xyxy or xywh")
        self.images, self.box_format, self.bad_records = Path(images), box_format, bad_records
        self.files: dict[Split, dict[str, Path]] = {
            "train": train or {},
            "val": val or {},
            "test": test or {},
            "predict": test or {},
        }
        self.selection = selection
        self.shuffle = self.shuffle and not selection.curriculum

    def build(self, split: Split) -> Source:
        """The expressions of one split; what is predicted on are the test files.

        Raises:
            MissingSplitError: there is no file for the split.
            ValueError: it or an image is faulty.
        """
        if not self.files[split]:
            name = "test" if split == "predict" else split
            raise MissingSplitError(
                f"data.{name}: no file is named, such as {{refcoco_val: refcoco_val.jsonl}}; name one"
            )
        read = partial(read_rec, images=self.images, box_format=self.box_format)
        sources = {
            name: CocoSource(
                path,
                self.images,
                task="grounding",
                bad_records=self.bad_records,  # type: ignore[arg-type]
                read=read,
                referring=True,
            )
            for name, path in self.files[split].items()
        }
        return select(SetsSource(sources), self.selection, split, self.seed)
