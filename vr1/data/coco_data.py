"""A folder of images with COCO annotations as a LightningDataModule."""

from pathlib import Path
from typing import Any, Literal

from vr1.data.coco import CocoSource, split_files
from vr1.data.datamodule import RecordDataModule, Source, Split

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
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.root, self.task, self.bad_records, self.empty_images = Path(root), task, bad_records, empty_images
        self.negatives, self.categories = negatives, categories

    def build(self, split: Split) -> Source:
        """The records of one split; what is predicted on are the test records.

        Raises:
            ValueError: the folder has no such split, or its annotations or images are faulty.
        """
        found = split_files(self.root)
        if (name := _NAMES[split]) not in found:
            raise ValueError(f"{self.root}: there is no {name} split, only {', '.join(found)}; add its annotations")
        return CocoSource(
            *found[name],
            task=self.task,  # type: ignore[arg-type]
            bad_records=self.bad_records,  # type: ignore[arg-type]
            empty_images=self.empty_images,  # type: ignore[arg-type]
            negatives=self.negatives,
            seed=self.seed,
            categories=self.categories,
        )
