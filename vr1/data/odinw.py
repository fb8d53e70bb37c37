"""Object Detection in the Wild (ODINW): many small data sets in one folder, each evaluated on its own."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vr1.data.coco_reader import read_coco
from vr1.data.datamodule import RecordDataModule, Source, Split
from vr1.data.dataset import CocoSource
from vr1.data.mixture import SetsSource
from vr1.data.selection import Selection, select
from vr1.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OdinwSet:
    """Where one set lies and what it asks for.

    Args:
        folder: the set's folder, relative to the root.
        categories: what to ask for, in this order; None takes all that the annotations use.
        train: training annotations, a COCO json relative to the folder.
        val: validation annotations.
        test: test annotations.
        images: folder of the images, relative to the set's; None: beside the annotations.
    """

    folder: str
    categories: list[str] | None = None
    train: str = "train/annotations_without_background.json"
    val: str = "valid/annotations_without_background.json"
    test: str = "test/annotations_without_background.json"
    images: str | None = None


class OdinwDataModule(RecordDataModule):
    """Sets in the layout of ODINW-13 and ODINW-35, as ``configs/eval/odinw13.yaml`` names them.

    Every record carries the name of its set, so that ``callbacks.Evaluation`` reports each set and the average.

    Args:
        root: the folder of all sets.
        sets: the sets by name.
        report: which annotations ``test`` and ``predict`` measure; published figures are of ``val``.
        missing: refuse to start without every set, or leave out those whose folder is not there (``skip``).
        task: one category a prompt (``grounding``, as the paper evaluates), or all in one (``detection``).
        negatives: share of grounding questions for a category that is not in the image; 0 asks for what is there only,
            as the released evaluation does.
        empty_images: keep images without objects in detection, or leave them out.
        bad_records: refuse faulty records before anything runs, or leave them out, counted and reported (``skip``).
        selection: which training records, in which order.
        loading: batch sizes, workers, order and seed (of the negatives too); see `RecordDataModule`.
    """

    def __init__(
        self,
        root: Path,
        sets: dict[str, OdinwSet],
        report: Literal["val", "test"] = "val",
        missing: Literal["error", "skip"] = "error",
        task: Literal["grounding", "detection"] = "grounding",
        negatives: float = 0.0,
        empty_images: Literal["keep", "skip"] = "keep",
        bad_records: Literal["error", "skip"] = "error",
        selection: Selection = Selection(),  # noqa: B008 - a frozen dataclass is safe to share
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        for name, value, allowed in (("report", report, ("val", "test")), ("missing", missing, ("error", "skip"))):
            if value not in allowed:
                raise UserError(f"data: {name}={value!r} must be {' or '.join(allowed)}")
        self.root, self.sets, self.report, self.missing = Path(root), sets, report, missing
        self.asking: dict[str, Any] = {
            "task": task,
            "negatives": negatives,
            "empty_images": empty_images,
            "bad_records": bad_records,
        }
        self.selection = selection
        self.shuffle = self.shuffle and not selection.curriculum

    def build(self, split: Split) -> Source:
        """All sets of one split, one after the other.

        Raises:
            UserError: a set is missing, its annotations or images are faulty, or no set is left.
        """
        found = {name: place for name, place in self.sets.items() if (self.root / place.folder).is_dir()}
        gone = [name for name in self.sets if name not in found]
        if not found:
            raise UserError(f"data.root={self.root}: none of the sets {', '.join(self.sets)} is there; check the path")
        if gone and self.missing == "error":
            raise UserError(
                f"data.root={self.root}: {', '.join(gone)} not there, such as {self.sets[gone[0]].folder}; fetch what"
                " is missing, or set missing: skip to go without"
            )
        return select(
            SetsSource({name: self._source(place, split) for name, place in found.items()}),
            self.selection,
            split,
            self.seed,
        )

    def _source(self, place: OdinwSet, split: Split) -> CocoSource:
        folder = self.root / place.folder
        annotations = folder / getattr(place, split if split in ("train", "val") else self.report)
        return CocoSource(
            annotations,
            annotations.parent if place.images is None else folder / place.images,
            categories=place.categories,
            seed=self.seed,
            read=partial(read_coco, blank_names="leave_out"),
            **self.asking,
        )
