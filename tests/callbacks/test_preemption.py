"""Being message to stop: what is saved, what is said, and that training goes on from it as if nothing had been."""

import os
import signal
import stat

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import SLURMEnvironment

from callbacks import Curves, Preemption, RuleRefinement
from callbacks.preemption import resume_command
from tests.callbacks.tiny import TinyDetector
from tests.command import ROOT
from tests.processes import Command
from tests.trainers import trainer
from vr1.data.sampler import RepeatedBatches, TrainingLoader


class Signal(Callback):
    """Sends a signal to its own process, in the middle of a step."""

    def __init__(self, batch, number=signal.SIGTERM, hook="on_before_backward"):
        self.batch, self.number = batch, number
        setattr(self, hook, self.send)
        self.count = 0

    def send(self, *_):
        self.count += 1
        if self.count == self.batch:
            os.kill(os.getpid(), self.number)


class Resumable(TinyDetector):
    def train_dataloader(self):
        return TrainingLoader(torch.arange(40), RepeatedBatches(40, batch_size=4, seed=0))


def fit(tmp_path, *callbacks, ckpt_path=None, **settings):
    model = Resumable([0.1 * step for step in range(8)])
    run = trainer(tmp_path, list(callbacks), **({"max_steps": 8} | settings))
    run.fit(model, ckpt_path=ckpt_path)
    return model


@pytest.fixture(autouse=True)
def handlers():
    """The signals are what they were, whatever happened."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_saves_after_the_step_and_exits(tmp_path, capsys, number):
    whole = fit(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, Preemption(), Signal(3, number))
    assert stopped.value.code == 128 + number
    path = tmp_path / "checkpoints" / "last.ckpt"
    message = capsys.readouterr().err.strip().splitlines()
    assert message[-2:] == [
        f"vr1: {signal.Signals(number).name} at step 3: saved {path}; resume with",
        f"trainer.fit(..., ckpt_path='{path}')",
    ]
    resumed = fit(tmp_path, Preemption(), ckpt_path=path)
    assert resumed.seen == whole.seen[3:]
    assert torch.equal(resumed.weight, whole.weight)


def test_what_the_other_callbacks_make_of_the_step_is_saved(tmp_path):
    curves, whole = Curves(), Curves()
    with pytest.raises(SystemExit):
        fit(tmp_path, Preemption(), RuleRefinement(), curves, Signal(3))
    fit(tmp_path, Preemption(), RuleRefinement(), curves := Curves(), ckpt_path=tmp_path / "checkpoints/last.ckpt")
    fit(tmp_path, RuleRefinement(), whole)
    assert curves.history.series == whole.history.series
    assert curves.switches == whole.switches


def test_an_accumulated_step_is_finished_first(tmp_path):
    with pytest.raises(SystemExit):
        fit(tmp_path, Preemption("now.ckpt"), Signal(3), accumulate_grad_batches=4, max_steps=2)
    state = torch.load(tmp_path / "checkpoints" / "now.ckpt", weights_only=True)
    assert state["global_step"] == 1
    assert state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == 4


def test_a_signal_before_the_first_step(tmp_path):
    with pytest.raises(SystemExit):
        fit(
            tmp_path, Preemption(), Signal(1, hook="on_sanity_check_start"), num_sanity_val_steps=1, limit_val_batches=1
        )
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1


def test_after_training_the_signals_are_free_again(tmp_path):
    fit(tmp_path, Preemption())
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("python -m vr1 fit --config a.yaml", "python -m vr1 fit --config a.yaml --ckpt_path 'my runs/p.ckpt'"),
        ("python -m vr1 fit --ckpt_path old.ckpt -c a", "python -m vr1 fit -c a --ckpt_path 'my runs/p.ckpt'"),
        ("python -m vr1 fit '--ckpt_path=old one.ckpt'", "python -m vr1 fit --ckpt_path 'my runs/p.ckpt'"),
        ("python -m vr1 fit --ckpt_path 'old one.ckpt' -c a", "python -m vr1 fit -c a --ckpt_path 'my runs/p.ckpt'"),
    ],
)
def test_the_command_that_goes_on(command, line):
    message = resume_command(command, "my runs/p.ckpt")
    assert message == line


def test_slurm_jobs_are_queued_again(tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name, value in {"JOB_ID": "77", "NTASKS": "1", "JOB_NAME": "mine", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(SystemExit):
        fit(tmp_path, Preemption(), Signal(3, signal.SIGUSR1), plugins=[SLURMEnvironment()])
    assert (tmp_path / "called").read_text() == "requeue 77\n"
    assert (tmp_path / "hpc_ckpt_1.ckpt").exists()
    # The same job starts again without naming a checkpoint.
    assert [step for step, _ in fit(tmp_path, Preemption(), plugins=[SLURMEnvironment()]).seen] == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("name", ["SIGNAL", "SIGKILL"])
def test_bad_settings(name):
    with pytest.raises(ValueError, match=f"signals has '{name}', which cannot be caught"):
        Preemption(signals=(name,))


@pytest.mark.slow
def test_a_run_of_the_command_line(tiny_model, tmp_path):
    arguments = ["fit", "--config", ROOT / "configs" / "demo.yaml"]
    arguments += ["--config", ROOT / "configs" / "guarded.yaml", "--model.policy.path", tiny_model]
    arguments += ["--data.num_workers", "0", "--trainer.limit_val_batches", "0", "--trainer.max_steps", "100000"]
    arguments += ["--data.batch_size", "2", "--model.sampling.max_new_tokens", "4", "--trainer.accelerator", "cpu"]
    metrics = tmp_path / "runs" / "demo" / "version_0" / "metrics.csv"
    with Command(arguments, tmp_path, tmp_path) as command:
        assert command.wait_until(metrics.exists), command.errors
        command.send_signal(signal.SIGTERM)
        assert command.wait(300) == 143, command.errors
        message = command.errors
    [command] = [line for line in message.splitlines() if line.startswith("python -m vr1 fit --config ")]
    assert command.endswith(" --ckpt_path runs/demo/version_0/checkpoints/last.ckpt")
    assert (tmp_path / command.split()[-1]).exists()
