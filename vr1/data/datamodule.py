"""The base of every data module: its loading settings, its splits and its loaders."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from vr1.data.accumulation import batches_of_whole_steps, batches_per_step
from vr1.data.mirrored import MirroredSource
from vr1.data.refused import Refusal, leave_out_refused
from vr1.data.sampler import RepeatedBatches, TrainingLoader
from vr1.data.selection import Selection, select
from vr1.data.source import CachedDataset, NamedErrors, RecordSource
from vr1.distributed import data_share, die_with_parent
from vr1.errors import UserError
from vr1.seeding import run_seed
from vr1.types import DetectionRecord

Source = Dataset[DetectionRecord]
InputSize = Callable[[tuple[int, int]], tuple[int, int]]
"""The (width, height) that the model's processor resizes an image of a (width, height) to."""
Split = Literal["train", "val", "test", "predict"]
_SPLITS_OF: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


class MissingSplitError(UserError):
    """A data set has no such split, which is no fault of those that it has."""


class Encoder(Protocol):
    """Turns records into a batch of the model's inputs."""

    def __call__(self, records: list[DetectionRecord]) -> Any:
        """The batch of a list of records; runs in the worker processes."""

    def first_of_step(self, batches: Sequence[Any]) -> Any:
        """The first of the batches of one optimizer step, which carries the others."""

    def refusal(self, image_size: tuple[int, int]) -> str | None:
        """Why the model takes no images of a (width, height); None if it does."""

    def input_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """The (width, height) that the model's processor resizes an image of a (width, height) to."""


class TrainedModule(Protocol):
    """What a data module needs of the module that is trained.

    Attributes:
        encoder: turns a list of records into a batch, in the worker processes.
        updates_per_rollout: how often each training batch is repeated.
        samples_whole_steps: whether it samples completions for all batches of an optimizer step together, so that the
            first batch has to carry the others.
    """

    encoder: Encoder
    updates_per_rollout: int
    samples_whole_steps: bool


class RecordDataModule(L.LightningDataModule, ABC):
    """Loaders over records, shared by every kind of data set. Subclasses add `read`.

    The loaders pass lists of records to the encoder of the module that is trained (``module.encoder``), in the
    worker processes.

    Args:
        batch_size: prompts per training batch and process.
        eval_batch_size: prompts per evaluation batch.
        num_workers: worker processes per loader.
        shuffle: give the training records in random order; a curriculum has its own order.
        seed: seed of that order and of all that a data set draws; None takes that of ``seed_everything``.
        cache_records: how many records each worker holds in memory, images decoded, for further epochs and
            evaluations. Useful with large files or a slow disk; a cached record takes 3 bytes a pixel.
        selection: which training records to take, and in which order; evaluation takes all.
        mirror: train on each image twice, as it is and mirrored from left to right, for data sets of few images. An
            epoch is then twice as long. Not for expressions or categories that say left or right, nor for written text.

    Attributes:
        asks_for_expressions: whether questions are expressions, such as "the man on the left".

    Raises:
        UserError: a number is too small, or ``mirror`` is set for expressions.
    """

    asks_for_expressions: bool = False

    def __init__(
        self,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        num_workers: int = 1,
        shuffle: bool = True,
        seed: int | None = None,
        cache_records: int = 0,
        selection: Selection = Selection(),  # noqa: B008 - a frozen dataclass is safe to share
        mirror: bool = False,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("cache_records", cache_records, 0),
        ):
            if value < least:
                raise UserError(f"data.{name}={value} must be at least {least}")
        if mirror and self.asks_for_expressions:
            raise UserError("data.mirror: expressions, which may say left or right, are not mirrored; leave it out")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.seed, self.cache_records = num_workers, run_seed(seed), cache_records
        self.selection, self.shuffle, self.mirror = selection, shuffle and not selection.curriculum, mirror
        self.sources: dict[Split, Source] = {}
        self.refusal: Refusal | None = None
        self.input_size: InputSize | None = None

    @abstractmethod
    def read(self, split: Split) -> Source:
        """All records of one split: ``train``, ``val``, ``test`` or ``predict``.

        Raises:
            MissingSplitError: there is no such split.
            UserError: its data are faulty.
        """

    def build(self, split: Split) -> Source:
        """The records of one split; of the training records, those that are selected, mirrored too if that is set.

        Raises:
            MissingSplitError: there is no such split.
            UserError: its data are faulty, or the selection leaves no record.
        """
        source = select(self._usable(self.read(split)), self.selection, split, self.seed)
        return MirroredSource(source) if self.mirror and split == "train" else source

    def refuse_images(self, refusal: Refusal) -> None:
        """Find images of which the model makes no prompt in the sources that are built from now on.

        They are reported as faulty records, or left out where faulty records are (``bad_records: skip``).

        Args:
            refusal: why the model refuses images of a size; None if it does not.
        """
        self.refusal = refusal

    def take_input_sizes(self, input_size: InputSize) -> None:
        """Read boxes that are written in pixels of the model's input, in the sources that are built from now on.

        Args:
            input_size: what the model's processor makes of the size of an image.
        """
        self.input_size = input_size

    @property
    def skips_bad_records(self) -> bool:
        """Whether records that cannot be used are left out, counted and reported, in place of an error."""
        return False

    def _usable(self, source: Any) -> Any:
        if self.refusal is None or not isinstance(source, RecordSource) or source.image_sizes is None:
            return source
        return leave_out_refused(source, self.refusal, skip=self.skips_bad_records)

    @property
    def is_stream(self) -> bool:
        """Whether records can only be read from front to back."""
        return False

    def report_bad_records(self) -> None:
        """Prepare for a reader that reports every faulty record and continues, as `vr1 check` does.

        Sources that are built from now on open in spite of faulty records. Nothing changes where no record can be
        faulty.
        """

    def setup(self, stage: str) -> None:
        """Open the sources that a stage needs, so that bad data are found before training."""
        if self.trainer is not None:
            self.refuse_images(self._module().encoder.refusal)
            self.take_input_sizes(self._module().encoder.input_size)
        for split in _SPLITS_OF[stage]:
            if split not in self.sources:
                self.sources[split] = self.build(split)
                self._try(split, self.sources[split])

    def _try(self, split: Split, source: Any) -> None:
        """Find now what would otherwise end the run after a full validation, or in the middle of training."""
        if split == "train":
            self._batches(source)
        if self.trainer is not None:
            # The record whose prompt is the longest, as far as that is known without decoding all of them.
            self._module().encoder([NamedErrors(source)[source.largest if isinstance(source, RecordSource) else 0]])

    def train_dataloader(self) -> TrainingLoader:
        """Training batches; each is repeated for as many updates as the module makes from one rollout."""
        source, module, trainer = self.sources["train"], self._module(), self.trainer
        assert trainer is not None
        return TrainingLoader(
            self._cached(source),
            self._batches(source),
            first_of_step=module.encoder.first_of_step if module.samples_whole_steps else None,
            window_of=lambda epoch: batches_per_step(trainer, epoch),
            collate_fn=module.encoder,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=die_with_parent,
            # Not the global generator: a resumed run starts its workers again, and must not draw from it twice.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _batches(self, source: Any) -> RepeatedBatches:
        if (trainer := self.trainer) is None:
            return RepeatedBatches(len(source), self.batch_size)
        share = data_share(trainer)
        return RepeatedBatches(
            len(source),
            batch_size=self.batch_size,
            repeats=self._module().updates_per_rollout,
            window=batches_per_step(trainer, trainer.current_epoch),
            multiple=batches_of_whole_steps(trainer),
            # Overfitting needs the same batches in every epoch.
            seed=self.seed if self.shuffle and not trainer.overfit_batches else None,  # type: ignore[attr-defined]
            rank=share.rank,
            world=share.world,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation batches, in order."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches, in order."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Prediction batches, in order."""
        return self._evaluation_loader("predict")

    def _evaluation_loader(self, split: Split) -> DataLoader[Any]:
        return DataLoader(
            self._cached(self.sources[split]),
            batch_size=self.eval_batch_size,
            collate_fn=self._module().encoder,
            num_workers=self.num_workers,
            # A worker's cache ends with the worker.
            persistent_workers=self.num_workers > 0 and self.cache_records > 0,
            worker_init_fn=die_with_parent,
        )

    def _cached(self, source: Any) -> Any:
        named = NamedErrors(source)
        return CachedDataset(named, self.cache_records) if self.cache_records else named

    def _module(self) -> TrainedModule:
        assert self.trainer is not None
        return self.trainer.lightning_module  # type: ignore[return-value]
