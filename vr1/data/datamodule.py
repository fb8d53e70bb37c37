"""Record sources as a LightningDataModule."""

from abc import ABC, abstractmethod
from typing import Any, Literal

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler

from vr1.data.repeat import RepeatedBatches
from vr1.records import DetectionRecord
from vr1.seeds import run_seed

Source = Dataset[DetectionRecord]
Split = Literal["train", "val", "test", "predict"]
_SPLITS_OF: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


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
    """

    def __init__(
        self,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        num_workers: int = 1,
        shuffle: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ValueError(f"data: {name}={value} must be at least 1")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.shuffle, self.seed = num_workers, shuffle, run_seed(seed)
        self.sources: dict[Split, Source] = {}

    @abstractmethod
    def build(self, split: Split) -> Source:
        """The source of one split: ``train``, ``val``, ``test`` or ``predict``.

        Raises:
            ValueError: there is no such split, or its data are faulty.
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
            RepeatedBatches(range(len(source)), self.batch_size)
        if self.trainer is not None:
            # The record whose prompt is the longest, as far as that is known without decoding all of them.
            self._module().encoder([source[getattr(source, "largest", 0)]])

    def train_dataloader(self) -> DataLoader[Any]:
        """Training batches; each is repeated for as many updates as the module makes from one rollout."""
        source = self.sources["train"]
        module, trainer = self._module(), self.trainer
        assert trainer is not None
        generator = torch.Generator().manual_seed(self.seed)
        sampler = RandomSampler(source, generator=generator) if self.shuffle else SequentialSampler(source)  # type: ignore[arg-type]
        batches = RepeatedBatches(
            sampler,
            batch_size=self.batch_size,
            repeats=getattr(module, "updates_per_rollout", 1),
            window=trainer.accumulate_grad_batches,
        )
        return DataLoader(
            source,
            batch_sampler=batches,
            collate_fn=module.encoder,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
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
            self.sources[split],
            batch_size=self.eval_batch_size,
            collate_fn=self._module().encoder,
            num_workers=self.num_workers,
        )

    def _module(self) -> Any:
        assert self.trainer is not None
        return self.trainer.lightning_module
