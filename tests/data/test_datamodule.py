"""The loaders of a data module through a real trainer: which records every epoch has, and in which order."""

import pytest
import torch
from lightning.pytorch import LightningModule

from tests.trainers import trainer
from vr1.data import SceneDataModule, SceneStyle

pytestmark = pytest.mark.filterwarnings(
    "ignore:The .*_dataloader' does not have many workers", "ignore:You requested to overfit"
)


class Ids:
    """A batch is the ids of its records."""

    def __call__(self, records):
        return [record.image_id for record in records]

    def refusal(self, image_size):
        return None

    def input_size(self, image_size):
        return image_size


class Reader(LightningModule):
    """Remembers the records of every batch by epoch, and trains one number."""

    updates_per_rollout, samples_whole_steps = 1, False

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.epochs = {}
        self.encoder = Ids()

    def training_step(self, batch, batch_idx):
        self.epochs.setdefault(self.trainer.current_epoch, []).append(batch)
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def read(folder, shuffle=True, **settings):
    """The batches of three epochs."""
    module = Reader()
    data = SceneDataModule(
        SceneStyle(), train_scenes=12, val_scenes=1, batch_size=2, num_workers=0, seed=3, shuffle=shuffle
    )
    trainer(folder, max_epochs=3, **settings).fit(module, data)
    assert sorted(module.epochs) == [0, 1, 2]
    return list(module.epochs.values())


def test_every_epoch_has_all_records_in_an_order_of_its_own(tmp_path):
    epochs = read(tmp_path)
    assert all(sorted(record for batch in epoch for record in batch) == list(range(1, 13)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_overfitting_repeats_the_same_batches(tmp_path):
    assert read(tmp_path, overfit_batches=2) == [[[1, 2], [3, 4]]] * 3


def test_without_shuffling_every_epoch_has_the_order_of_the_data(tmp_path):
    assert read(tmp_path, shuffle=False) == [[[row, row + 1] for row in range(1, 13, 2)]] * 3
