"""Record sources as a LightningDataModule, and records cached in memory."""

from abc import ABC, abstractmethod
from typing import Any, Literal

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from vr1.data.sampler import RepeatedBatches, TrainingLoader
from vr1.distributed import data_share, die_with_parent
from vr1.errors import UserError
from vr1.seeding import run_seed
from vr1.types import DetectionRecord


class CachedDataset(Dataset[DetectionRecord]):
    """A source whose first records that are asked for are read once.

    None is ever dropped for another: where records come in a random order every epoch, those that stay are worth as
    much as any, and the least recently read one is as likely to be next.

    Args:
        source: records by index.
        most: how many are kept, by each process that reads.

    Example:
        >>> from vr1.data import SceneSource
        >>> kept = CachedDataset(SceneSource(length=3), most=2)
        >>> kept[0] is kept[0], kept[1] is kept[1], kept[2] is kept[2]
        (True, True, False)
    """

    def __init__(self, source: Any, most: int) -> None:
        self.source, self.most = source, most
        self._kept: dict[int, DetectionRecord] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> DetectionRecord:
        """Read record ``index``, or take it from memory.

        Raises:
            IndexError: outside the data set.
        """
        if (record := self._kept.get(index)) is None:
            record = self.source[index]
            if len(self._kept) < self.most:
                record.image.load()
                self._kept[index] = record
        return record


Source = Dataset[DetectionRecord]
Split = Literal["train", "val", "test", "predict"]
_SPLITS_OF: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


class MissingSplitError(UserError):
    """A data set has no such split, which is no fault of those that it has."""


class RecordDataModule(L.LightningDataModule, ABC):
    """Loaders over record sources, shared by every kind of data set.

    The loaders hand whole batches of records to the encoder of the module that is trained
    (``module.encoder``), in the worker processes.

    Args:
        batch_size: prompts per training batch and process.
        eval_batch_size: prompts per evaluation batch.
        num_workers: worker processes per loader.
        shuffle: draw the training records in random order.
        seed: seed of that order; None takes that of ``seed_everything``.
        keep: how many records each worker keeps in memory, images decoded, for further epochs and evaluations. Worth
            it for large files or a slow disk; what is kept takes 3 bytes a pixel.
    """

    def __init__(
        self,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        num_workers: int = 1,
        shuffle: bool = True,
        seed: int | None = None,
        keep: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("keep", keep, 0),
        ):
            if value < least:
                raise UserError(f"data: {name}={value} must be at least {least}")
        self.keep = keep
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.shuffle, self.seed = num_workers, shuffle, run_seed(seed)
        self.sources: dict[Split, Source] = {}

    @abstractmethod
    def build(self, split: Split) -> Source:
        """The source of one split: ``train``, ``val``, ``test`` or ``predict``.

        Raises:
            MissingSplitError: there is no such split.
            UserError: its data are faulty.
        """

    def setup(self, stage: str) -> None:
        """Open the sources that a stage needs, so that bad data is found before training."""
        for split in _SPLITS_OF[stage]:
            if split not in self.sources:
                self.sources[split] = self.build(split)
                self._try(split, self.sources[split])

    def _try(self, split: Split, source: Any) -> None:
        """Find now what would otherwise end the run after a whole validation, or in the middle of training."""
        if split == "train":
            self._batches(source)
        if self.trainer is not None:
            # The record whose prompt is the longest, as far as that is known without decoding all of them.
            self._module().encoder([source[getattr(source, "largest", 0)]])

    def train_dataloader(self) -> TrainingLoader:
        """Training batches; each is repeated for as many updates as the module makes from one rollout."""
        source = self.sources["train"]
        return TrainingLoader(
            self._kept(source),
            self._batches(source),
            collate_fn=self._module().encoder,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=die_with_parent,
            # The generator that everything shares is not to be drawn from: a resumed run makes its workers anew.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _batches(self, source: Any) -> RepeatedBatches:
        if (trainer := self.trainer) is None:
            return RepeatedBatches(len(source), self.batch_size)
        share = data_share(trainer)
        return RepeatedBatches(
            len(source),
            batch_size=self.batch_size,
            repeats=getattr(self._module(), "updates_per_rollout", 1),
            window=trainer.accumulate_grad_batches,
            # Overfitting is asked for on the same batches in every epoch.
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
            self._kept(self.sources[split]),
            batch_size=self.eval_batch_size,
            collate_fn=self._module().encoder,
            num_workers=self.num_workers,
            # What workers keep is theirs: it ends with them.
            persistent_workers=self.num_workers > 0 and self.keep > 0,
            worker_init_fn=die_with_parent,
        )

    def _kept(self, source: Any) -> Any:
        return CachedDataset(source, self.keep) if self.keep else source

    def _module(self) -> Any:
        assert self.trainer is not None
        return self.trainer.lightning_module
