"""Object Detection in the Wild (ODINW): many small data sets in one folder, each evaluated on its own."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vr1.data.annotated import AnnotatedDataModule, AnnotatedSource
from vr1.data.coco_reader import read_coco
from vr1.data.datamodule import Source, Split
from vr1.data.mixture import SetsSource
from vr1.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OdinwSet:
    """The files of one set, and the categories that its questions name.

    Args:
        folder: the set's folder, relative to the root.
        categories: the categories to name, in this order; None takes all that the annotations use.
        train: training annotations, a COCO json relative to the folder.
        val: validation annotations.
        test: test annotations.
        images: folder of the images, relative to the set's; None: that of the annotations.
    """

    folder: str
    categories: list[str] | None = None
    train: str = "train/annotations_without_background.json"
    val: str = "valid/annotations_without_background.json"
    test: str = "test/annotations_without_background.json"
    images: str | None = None


class OdinwDataModule(AnnotatedDataModule):
    """Sets in the layout of ODINW-13 and ODINW-35, as ``configs/eval/odinw13.yaml`` names them.

    Every record has the name of its set, so that ``callbacks.Evaluation`` reports each set and the average.

    Args:
        root: the folder of all sets.
        sets: the sets by name.
        report: which annotations ``test`` and ``predict`` measure; published figures are of ``val``.
        missing: refuse to start without every set, or leave out those whose folder is missing (``skip``).
        task: one category in each prompt (``grounding``, as the paper evaluates), or all in one (``detection``).
        settings: questions, faulty records, selection and loading; see `AnnotatedDataModule` and `RecordDataModule`.
    """

    def __init__(
        self,
        root: Path,
        sets: dict[str, OdinwSet],
        report: Literal["val", "test"] = "val",
        missing: Literal["error", "skip"] = "error",
        task: Literal["detection", "grounding"] = "grounding",
        **settings: Any,
    ) -> None:
        # Each set names its own categories.
        super().__init__(task=task, categories=None, **settings)
        for name, value, allowed in (("report", report, ("val", "test")), ("missing", missing, ("error", "skip"))):
            if value not in allowed:
                raise UserError(f"data.{name}={value!r} must be {' or '.join(allowed)}")
        self.root, self.sets, self.report, self.missing = Path(root), sets, report, missing

    def read(self, split: Split) -> Source:
        """All sets of one split, one after the other.

        Raises:
            UserError: a set is missing, its annotations or images are faulty, or no set is left.
        """
        present = {name: files for name, files in self.sets.items() if (self.root / files.folder).is_dir()}
        absent = [name for name in self.sets if name not in present]
        if not present:
            names = ", ".join(self.sets)
            raise UserError(f"data.root={self.root}: has none of the sets {names}; check the path")
        if absent and self.missing == "error":
            raise UserError(
                f"data.root={self.root}: {', '.join(absent)} not found, such as {self.sets[absent[0]].folder}; download"
                " what is missing, or set missing: skip to go without"
            )
        return SetsSource({name: self._source(name, files, split) for name, files in present.items()})

    def _source(self, name: str, files: OdinwSet, split: Split) -> AnnotatedSource:
        folder = self.root / files.folder
        report = files.val if self.report == "val" else files.test
        annotations = folder / {"train": files.train, "val": files.val}.get(split, report)
        read = partial(read_coco, empty_names="leave_out")
        training = folder / files.train
        source = self.open(
            annotations,
            annotations.parent if files.images is None else folder / files.images,
            read=read,
            questions=replace(self.questions, categories=files.categories),
            training_categories=self.asked_in_training(training, read, name) if training.is_file() else None,
        )
        return self.train_on(source, name) if split == "train" else source
