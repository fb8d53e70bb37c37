"""A folder of Pascal VOC annotations as a LightningDataModule."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

from vr1.data.coco import CocoSource
from vr1.data.coco_splits import FOLDER_SPLITS
from vr1.data.datamodule import MissingSplitError, RecordDataModule, Source, Split
from vr1.data.selection import Selection, select
from vr1.data.voc_file import read_voc
from vr1.data.voc_splits import voc_splits


class VocDataModule(RecordDataModule):
    """Images with Pascal VOC xml files: VOC's own layout, Roboflow's, or one folder that is divided.

    Args:
        root: the folder; see `voc_splits` for the layouts that are understood.
        first_pixel: 1 for VOC2007 and VOC2012, which count pixels from 1; 0 for files of most tools.
        difficult: objects marked difficult are neither to be found nor to be missed (``ignore``), or ``count``.
        task: ask for all categories in one prompt (``detection``) or for one a prompt (``grounding``).
        bad_records: refuse faulty records before training, or leave them out, counted and reported (``skip``).
        empty_images: keep images without objects, to be answered by an empty list, or leave them out.
        negatives: share of grounding questions for a category that is not in the image.
        categories: ask for these, in this order, instead of all that the files use.
        selection: which training records, in which order.
        loading: batch sizes, workers, order and seed (of the negatives too); see `RecordDataModule`.
    """

    def __init__(
        self,
        root: Path,
        first_pixel: Literal[0, 1] = 0,
        difficult: Literal["ignore", "count"] = "ignore",
        task: Literal["detection", "grounding"] = "detection",
        bad_records: Literal["error", "skip"] = "error",
        empty_images: Literal["keep", "skip"] = "keep",
        negatives: float = 0.0,
        categories: list[str] | None = None,
        selection: Selection = Selection(),  # noqa: B008 - a frozen dataclass is safe to share
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        if first_pixel not in (0, 1):
            raise ValueError(f"data: first_pixel={first_pixel} must be 0 or 1")
        if difficult not in ("ignore", "count"):
            raise ValueError(f"data: difficult={difficult!r} must be 'ignore' or 'count'")
        self.root, self.selection = Path(root), selection
        self.first_pixel, self.difficult = first_pixel, difficult
        self.asking: dict[str, Any] = {
            "task": task,
            "bad_records": bad_records,
            "empty_images": empty_images,
            "negatives": negatives,
            "categories": categories,
        }
        self.shuffle = self.shuffle and not selection.curriculum

    def build(self, split: Split) -> Source:
        """The records of one split; what is predicted on are the test records.

        Raises:
            MissingSplitError: the folder has no such split.
            ValueError: its annotations or images are faulty.
        """
        found = voc_splits(self.root)
        name = FOLDER_SPLITS[split]
        if name not in found or not found[name].files:
            raise MissingSplitError(
                f"{self.root}: there is no {name} split with images, only {', '.join(found)}; add one"
            )
        files, images = found[name]
        read = partial(read_voc, files=files, first_pixel=self.first_pixel, difficult=self.difficult)
        source = CocoSource(self.root, images, read=read, seed=self.seed, **self.asking)
        return select(source, self.selection, split, self.seed)
