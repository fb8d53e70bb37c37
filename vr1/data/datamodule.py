"""Record sources as a LightningDataModule."""

from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler

from vr1.data.repeat import RepeatedBatches
from vr1.data.scenes import SceneSource, SceneStyle
from vr1.records import DetectionRecord

Source = Dataset[DetectionRecord]


class RecordDataModule(L.LightningDataModule):
    """Loaders over record sources, shared by every kind of data set.

    The loaders hand whole batches of records to the encoder of the module that is trained
    (``module.encoder``), in the worker processes.

    Args:
        batch_size: prompts per training batch and process.
        eval_batch_size: prompts per evaluation batch.
        num_workers: worker processes per loader.
        shuffle: draw the training records in random order.
        seed: seed of that order.
    """

    def __init__(
        self, batch_size: int = 16, eval_batch_size: int = 64, num_workers: int = 1, shuffle: bool = True, seed: int = 0
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ValueError(f"data: {name}={value} must be at least 1")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.shuffle, self.seed = num_workers, shuffle, seed
        self.sources: dict[str, Source] = {}

    def build(self, split: str) -> Source:
        """The source of one split: ``train``, ``val``, ``test`` or ``predict``."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Open the sources that a stage needs, so that bad data is found before training."""
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}[stage]
        for split in wanted:
            if split not in self.sources:
                self.sources[split] = self.build(split)

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

    def _evaluation_loader(self, split: str) -> DataLoader[Any]:
        return DataLoader(
            self.sources[split],
            batch_size=self.eval_batch_size,
            collate_fn=self._module().encoder,
            num_workers=self.num_workers,
        )

    def _module(self) -> Any:
        assert self.trainer is not None
        return self.trainer.lightning_module


class SceneDataModule(RecordDataModule):
    """Made scenes.

    Args:
        style: what the scenes look like.
        train_scenes: scenes in the training set.
        val_scenes: scenes in the validation set.
        test_scenes: scenes in the test set.
        scene_seed: which of the many data sets of this style.
        batch_size: prompts per training batch and process.
        eval_batch_size: prompts per evaluation batch.
        num_workers: worker processes per loader.
        shuffle: draw the training records in random order.
        seed: seed of that order.
    """

    def __init__(
        self,
        style: SceneStyle = SceneStyle(),  # noqa: B008 - a frozen dataclass is safe to share
        train_scenes: int = 400,
        val_scenes: int = 256,
        test_scenes: int = 256,
        scene_seed: int = 0,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        num_workers: int = 1,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, shuffle, seed)
        self.style, self.scene_seed = style, scene_seed
        self.lengths = {"train": train_scenes, "val": val_scenes, "test": test_scenes, "predict": test_scenes}

    def build(self, split: str) -> Source:
        """Scenes of one split; what is predicted on are the test scenes."""
        drawn = "test" if split == "predict" else split
        return SceneSource(self.lengths[split], drawn, self.scene_seed, self.style)  # type: ignore[arg-type]
