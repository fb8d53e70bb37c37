"""Errors of the export at the end of training; what it writes is in tests/checkpoints/test_export.py."""

from functools import partial

import pytest
import torch

from callbacks import Export
from tests.callbacks.tiny import TinyDetector
from tests.trainers import trainer
from vr1.data import SceneDataModule, SceneStyle
from vr1.modules.sft import SFTModule


def test_a_module_without_a_policy_is_refused_before_training(tmp_path):
    model = TinyDetector()
    with pytest.raises(
        ValueError, match=r"Export requires a module of vr1 .* TinyDetector is none: leave the callback out"
    ):
        trainer(tmp_path, [Export()], max_steps=1).fit(model)
    assert not model.seen


@pytest.mark.parametrize("fast", [True, False])
def test_fast_dev_run_writes_nothing(source, tmp_path, fast):
    module = SFTModule(policy=source, optimizer=partial(torch.optim.AdamW, lr=1e-3))
    data = SceneDataModule(SceneStyle(), train_scenes=2, val_scenes=1, batch_size=2, num_workers=0)
    trainer(tmp_path, [Export()], max_steps=1, fast_dev_run=fast).fit(module, data)
    assert (tmp_path / "model").exists() is not fast


def test_bad_settings():
    with pytest.raises(ValueError, match="dtype='int8' is not a floating-point type"):
        Export(dtype="int8")
