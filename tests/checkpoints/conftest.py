"""Trained runs that the tests of export and loading share."""

from functools import partial

import pytest
import torch

from tests.trainers import trainer
from vr1.data import SceneDataModule, SceneStyle
from vr1.modules.sft import SFTModule
from vr1.policy import Lora, PolicySource

RUNS = {"full": {}, "lora": {"lora": Lora(rank=2)}, "qlora": {"lora": Lora(rank=2), "quantize": "nf4"}}


@pytest.fixture(scope="session")
def trained(tiny_model, tmp_path_factory):
    """Trains one run of each kind, once: its policy and its checkpoint."""
    made = {}

    def train(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            source = PolicySource(path=str(tiny_model), max_pixels=60 * 56 * 56, **RUNS[kind])
            module = SFTModule(policy=source, optimizer=partial(torch.optim.AdamW, lr=1e-2))
            data = SceneDataModule(SceneStyle(), train_scenes=8, val_scenes=1, batch_size=4, num_workers=0)
            training = trainer(folder, max_steps=3, max_epochs=-1)
            training.fit(module, data)
            training.save_checkpoint(folder / "last.ckpt")
            made[kind] = module.policy.network.eval(), folder / "last.ckpt"
        return made[kind]

    return train
