"""The checkpoint that a command starts from, and Ctrl-C as a user presses it."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch

from tests.command import run, small, steps
from tests.processes import Command
from vr1.commands.resume import find_checkpoint, finished_message


def checkpoint(path, modified, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    os.utime(path, (modified, modified))
    return str(path)


def test_last_is_the_newest_of_all_runs(tmp_path):
    checkpoint(tmp_path / "version_1" / "checkpoints" / "last.ckpt", 1000)
    newest = checkpoint(tmp_path / "version_0" / "checkpoints" / "step=5.ckpt", 2000)
    assert find_checkpoint("last", tmp_path) == newest


def test_a_missing_checkpoint_is_reported_with_those_that_exist(tmp_path):
    older = checkpoint(tmp_path / "version_0" / "checkpoints" / "last.ckpt", 1000)
    newer = checkpoint(tmp_path / "version_1" / "checkpoints" / "last.ckpt", 2000)
    with pytest.raises(ValueError, match=f"no such checkpoint; {tmp_path} has {newer}, {older} "):
        find_checkpoint("missing.ckpt", tmp_path)
    with pytest.raises(ValueError, match=r"no run in .*empty has a checkpoint"):
        find_checkpoint("last", tmp_path / "empty")


@pytest.mark.parametrize("keyword", ["best", "hpc", "registry:mine", "s3://bucket/last.ckpt"])
def test_what_lightning_resolves_is_left_alone(keyword, tmp_path):
    assert find_checkpoint(keyword, tmp_path) == keyword


@pytest.mark.parametrize(
    ("max_steps", "max_epochs", "text"),
    [(8, None, "at step 8 of 8"), (9, None, None), (-1, 2, "at the end of epoch 2 of 2"), (-1, 3, None)],
)
def test_a_finished_training_is_recognised(max_steps, max_epochs, text, tmp_path):
    progress = {"fit_loop": {"epoch_progress": {"current": {"completed": 2}}}}
    path = checkpoint(tmp_path / "last.ckpt", 1000, global_step=8, loops=progress)
    message = finished_message(path, SimpleNamespace(max_steps=max_steps, max_epochs=max_epochs))
    assert (text in message) if text else message is None


def test_resuming_a_finished_training_makes_no_new_folder(tiny_model, tmp_path, capsys):
    arguments = [*small(tiny_model), *steps(1), "--trainer.limit_val_batches", 0, "--out", "mine"]
    assert run(tmp_path, "fit", *arguments) == 0
    before = sorted(tmp_path.rglob("*"))
    assert tmp_path / "mine" / "version_0" / "checkpoints" / "last.ckpt" in before
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}, "everything of a run is in one folder"
    assert run(tmp_path, "fit", *arguments, "--ckpt_path", "last") == 0
    assert "at step 1 of 1: this training is finished" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_ctrl_c_saves_and_prints_the_command_that_resumes(tiny_model, tmp_path):
    """In a folder with a `callbacks.py` of the user's own, which is not the package of the configurations."""
    (tmp_path / "callbacks.py").write_text("raise RuntimeError('not the package')")
    arguments = [str(argument) for argument in (*small(tiny_model), *steps(100_000))]
    arguments += ["--trainer.limit_val_batches", "0", "--out", "mine"]
    metrics = tmp_path / "mine" / "version_0" / "metrics.csv"
    with Command(["fit", *arguments], tmp_path, tmp_path) as command:
        assert command.wait_until(metrics.exists), command.errors
        command.send_signal(signal.SIGINT)
        assert command.wait(300) == 130, command.errors
        errors = command.errors
    [resume] = [line for line in errors.splitlines() if line.startswith("python -m vr1 fit ")]
    assert resume.endswith(" --out mine --ckpt_path mine/version_0/checkpoints/last.ckpt")
    assert (tmp_path / "mine" / "version_0" / "checkpoints" / "last.ckpt").is_file()
    assert (tmp_path / "mine" / "version_0" / "report.html").is_file()
