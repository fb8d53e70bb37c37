"""Commands run within the test's process, on the tiny model and small enough to take seconds."""

import contextlib
from pathlib import Path
from unittest import mock

from lightning.pytorch.callbacks import Callback

from tests.shared_data import SHARED
from vr1.cli import main

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
RACCOON = SHARED / "raccoon"


class Keep(Callback):
    """Keeps what was trained, to look at after the command: ``--trainer.callbacks+ tests.command.Keep``."""

    trainer = None
    module = None

    def on_fit_end(self, trainer, pl_module):
        Keep.trainer, Keep.module = trainer, pl_module


def run(folder, *arguments):
    """The exit status of a command that runs in ``folder``."""
    # LightningCLI warns where it finds arguments of another program beside those that it was given.
    with contextlib.chdir(folder), mock.patch("sys.argv", ["vr1"]):
        try:
            return main([str(word) for word in arguments]) or 0
        except SystemExit as stop:
            return stop.code or 0


def small(model, config="demo.yaml", scenes=True):
    """Words that make a configuration of this repository a matter of seconds."""
    arguments = ["--config", CONFIGS / config, "--model.policy.path", model]
    arguments += ["--model.evaluation.max_new_tokens", 6, "--data.num_workers", 0, "--trainer.accelerator", "cpu"]
    if scenes:
        arguments += ["--data.train_scenes", 4, "--data.val_scenes", 3, "--data.test_scenes", 3, "--data.batch_size", 2]
    return arguments


def steps(count=1):
    """Words for a training of so many steps, validated after each."""
    arguments = ["--trainer.max_steps", count, "--trainer.val_check_interval", 1]
    return [*arguments, "--model.sampling.max_new_tokens", 6, "--model.sampling.group_size", 2]
