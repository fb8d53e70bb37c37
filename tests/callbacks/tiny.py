"""A LightningModule that trains one number, logs given rewards, and predicts the example of the drawings."""

from dataclasses import replace

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from vr1.drawing.boxes import example_prediction
from vr1.rewards import Criterion, Reward


class TinyDetector(pl.LightningModule):
    def __init__(self, rewards=(), images=6, scale_by_rank=(1.0,), total_name="reward/total"):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.reward = Reward(criterion=Criterion(0.1, 0.1, 0.2))
        self.rewards = list(rewards)
        self.images = images
        self.scale_by_rank = scale_by_rank
        self.total_name = total_name
        self.seen = []
        self.validated = []

    def training_step(self, batch, batch_idx):
        step = self.trainer.global_step
        self.seen.append((step, self.reward.criterion.xi0))
        value = self.rewards[step] if step < len(self.rewards) else 1.0
        self.log(self.total_name, value * self.scale_by_rank[self.global_rank])
        self.log_dict(
            {"reward/recall": value / 2, "grpo/kl": 0.01 * step, "grpo/loss": 0.1, "perf/tokens_per_second": 1234.5}
        )
        return (self.weight - batch.float().mean()).square().sum()

    def validation_step(self, batch, batch_idx):
        return [self.prediction(int(index)) for index in batch]

    test_step = validation_step
    predict_step = validation_step

    def prediction(self, index):
        prediction = example_prediction(empty=index % 3 == 2)
        return replace(
            prediction, record=replace(prediction.record, image_id=index, origin=f"my images/shape {index % 2}.png")
        )

    def on_validation_epoch_end(self):
        step = self.trainer.global_step
        self.validated.append((step, self.reward.criterion.xi0))
        self.log_dict({"val/map": 0.1 + 0.01 * step, "val/valid_rate": 0.5}, sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(torch.arange(40), batch_size=4)

    def val_dataloader(self):
        return DataLoader(torch.arange(self.images), batch_size=2)

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader
