"""A folder of images with COCO annotations as a LightningDataModule."""

from pathlib import Path
from typing import Any, Literal

from vr1.data.coco_layout import FOLDER_SPLITS
from vr1.data.datamodule import MissingSplitError, RecordDataModule, Source, Split
from vr1.data.dataset import CocoSource, split_files
from vr1.data.selection import Selection, select
from vr1.errors import UserError


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
            raise UserError(f"data: report={report!r} must be val or test")
        self.report, self.selection = report, selection
        self.shuffle = self.shuffle and not selection.curriculum
        self.root = Path(root)
        self.asking: dict[str, Any] = {
            "task": task,
            "bad_records": bad_records,
            "empty_images": empty_images,
            "negatives": negatives,
            "categories": categories,
        }

    def build(self, split: Split) -> Source:
        """The records of one split; what is predicted on are the records that are tested on.

        Raises:
            MissingSplitError: the folder has no such split.
            UserError: its annotations or images are faulty.
        """
        found = split_files(self.root)
        name = "valid" if split in ("test", "predict") and self.report == "val" else FOLDER_SPLITS[split]
        if name not in found:
            raise MissingSplitError(
                f"{self.root}: there is no {name} split, only {', '.join(found)}; add its annotations"
            )
        source = CocoSource(*found[name], seed=self.seed, **self.asking)
        return select(source, self.selection, split, self.seed)
