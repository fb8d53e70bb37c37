"""When the file to resume from is written: after every validation of a training and at its end, and never before."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from callbacks import LastCheckpoint
from tests.callbacks.tiny import TinyDetector
from tests.trainers import trainer


class Steps(Callback):
    """The step of the file before every training step and at the end; None without a file."""

    def __init__(self, file):
        self.file, self.seen = file, []

    def look(self, *_):
        self.seen.append(torch.load(self.file, weights_only=True)["global_step"] if self.file.exists() else None)

    def on_train_batch_start(self, *_):
        self.look()

    def on_fit_end(self, *_):
        self.look()


def fit(folder, steps, ckpt_path=None, **settings):
    watch = Steps(folder / "checkpoints" / "last.ckpt")
    validating = {"num_sanity_val_steps": 1, "limit_val_batches": 1, "val_check_interval": 2}
    run = trainer(
        folder, [LastCheckpoint(), watch], max_steps=steps, enable_checkpointing=True, **(validating | settings)
    )
    run.fit(TinyDetector(), ckpt_path=ckpt_path)
    return watch


def test_it_is_of_the_latest_validation_and_of_the_end(tmp_path):
    """A check of the validation before the first step writes nothing: an earlier run's file stays until then."""
    assert fit(tmp_path, 5).seen == [None, None, 2, 2, 4, 5]


def test_a_resumed_run_keeps_the_file_until_it_has_a_newer_one(tmp_path):
    file = fit(tmp_path, 5).file
    assert fit(tmp_path, 8, ckpt_path=file).seen == [5, 6, 6, 8]


@pytest.mark.parametrize("settings", [{"limit_val_batches": 0}, {"val_check_interval": 10}])
def test_without_a_validation_it_is_of_the_end(tmp_path, settings):
    assert fit(tmp_path, 3, **settings).seen == [None, None, None, 3]


def test_a_trial_run_writes_nothing(tmp_path):
    assert fit(tmp_path, 2, fast_dev_run=2).seen == [None] * 3
