"""A folder in YOLO's layout as a LightningDataModule."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

from vr1.data.coco import CocoSource
from vr1.data.coco_splits import FOLDER_SPLITS
from vr1.data.datamodule import MissingSplitError, RecordDataModule, Source, Split
from vr1.data.selection import Selection, select
from vr1.data.yolo_file import read_yolo, yolo_splits


class YoloDataModule(RecordDataModule):
    """Images with YOLO txt labels and a ``data.yaml`` that names the categories and the splits.

    Args:
        root: the folder with the yaml file, or the file itself.
        task: ask for all categories in one prompt (``detection``) or for one a prompt (``grounding``).
        bad_records: refuse faulty records before training, or leave them out, counted and reported (``skip``).
        empty_images: keep images without objects, to be answered by an empty list, or leave them out.
        negatives: share of grounding questions for a category that is not in the image.
        categories: ask for these, in this order, instead of all that the labels use.
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
        selection: Selection = Selection(),  # noqa: B008 - a frozen dataclass is safe to share
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.root, self.selection = Path(root), selection
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
            MissingSplitError: the yaml file names no such split, or one whose images are not there.
            ValueError: its labels or images are faulty.
        """
        names, places = yolo_splits(self.root)
        if (name := FOLDER_SPLITS[split]) not in places:
            raise MissingSplitError(
                f"{self.root}: there is no {name} split, only {', '.join(places)}; name its folder in the yaml"
                " file, and put its images there"
            )
        place = places[name]
        folder = place if place.is_dir() else place.parent
        source = CocoSource(place, folder, read=partial(read_yolo, names=names), seed=self.seed, **self.asking)
        return select(source, self.selection, split, self.seed)
