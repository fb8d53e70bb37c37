"""A folder of images with COCO annotations as a LightningDataModule."""

from pathlib import Path
from typing import Any, Literal

from vr1.data.coco import CocoSource, split_files
from vr1.data.datamodule import RecordDataModule, Source, Split
from vr1.data.selection import Selection, select

_NAMES: dict[Split, str] = {"train": "train", "val": "valid", "test": "test", "predict": "test"}


class CocoDataModule(RecordDataModule):
    """Any folder of images with a COCO json: COCO's own layout, Roboflow's, or one file that is divided.

    Args:
        root: the folder; see `split_files` for the layouts that are understood.
        task: ask for all categories in one prompt (``detection``) or for one a prompt (``grounding``).
        bad_records: refuse faulty records before training, or leave them out, counted and reported (``skip``).
        empty_images: keep images without objects, to be answered by an empty list, or leave them out.
        negatives: share of grounding questions for a category that is not in the image.
        categories: ask for these, in this order, instead of all that the files use.
        report: which split ``test`` and ``predict`` take; ``val`` for COCO, whose test annotations are not public.
        selection: which training records, in which order.
        loading: batch sizes, workers, order and seed (of the negatives too); see `RecordDataModule`.
    """

    def __init__(
        self,
        root: Path,
        task: Literal["detection", "grounding"] = "detection",
        bad_records: Literal["error", "skip"] = "error",
        empty_images: Literal["keep", "skip"] = "keep",
        negatives: float = 0.0,
        categories: list[str] | None = None,
        report: Literal["val", "test"] = "test",
        selection: Selection = Selection(),  # noqa: B008 - a frozen dataclass is safe to share
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        if report not in ("val", "test"):
            raise ValueError(f"data: report={report!r} must be val or test")
        self.report, self.selection = report, selection
        self.shuffle = self.shuffle and not selection.curriculum
        self.root, self.task, self.bad_records, self.empty_images = Path(root), task, bad_records, empty_images
        self.negatives, self.categories = negatives, categories

    def build(self, split: Split) -> Source:
        """The records of one split; what is predicted on are the records that are tested on.

        Raises:
            ValueError: the folder has no such split, or its annotations or images are faulty.
        """
        found = split_files(self.root)
        name = "valid" if split in ("test", "predict") and self.report == "val" else _NAMES[split]
        if name not in found:
            raise ValueError(f"{self.root}: there is no {name} split, only {', '.join(found)}; add its annotations")
        source = CocoSource(
            *found[name],
            task=self.task,  # type: ignore[arg-type]
            bad_records=self.bad_records,  # type: ignore[arg-type]
            empty_images=self.empty_images,  # type: ignore[arg-type]
            negatives=self.negatives,
            seed=self.seed,
            categories=self.categories,
        )
        return select(source, self.selection, split, self.seed)
