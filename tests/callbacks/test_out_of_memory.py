"""Advice where memory runs out, by the part of the step in which it does."""

import pytest
import torch

from callbacks import OutOfMemoryAdvice
from tests.callbacks.tiny import TinyDetector
from tests.command import run, small, steps
from tests.trainers import trainer
from vr1.modules.state import TrainingState


class Hungry(TinyDetector):
    def __init__(self, part, error):
        super().__init__()
        self.part, self.error, self.training_state = part, error, TrainingState()

    def training_step(self, batch, batch_idx):
        if self.part == "policy":
            raise self.error
        with self.training_state.timer.measure(self.part):
            raise self.error

    def validation_step(self, batch, batch_idx):
        raise self.error


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("rollout", "lower model.sampling.group_size"),
        ("reference", "lower data.batch_size"),
        ("policy", "set model.policy.gradient_checkpointing true"),
    ],
)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError("all gone")])
def test_the_advice_goes_by_the_part(tmp_path, part, named, error):
    error.__notes__ = []
    with pytest.raises(type(error)) as raised:
        trainer(tmp_path, [OutOfMemoryAdvice()]).fit(Hungry(part, error))
    [note] = raised.value.__notes__
    assert note.startswith("memory ran out")
    assert named in note


def test_evaluation_has_batches_of_its_own(tmp_path):
    with pytest.raises(MemoryError) as raised:
        trainer(tmp_path, [OutOfMemoryAdvice()], limit_val_batches=1).validate(Hungry("policy", MemoryError()))
    assert "lower data.eval_batch_size" in raised.value.__notes__[0]


def test_other_errors_are_left_alone(tmp_path):
    with pytest.raises(RuntimeError) as raised:
        trainer(tmp_path, [OutOfMemoryAdvice()]).fit(Hungry("rollout", RuntimeError("shapes differ")))
    assert not getattr(raised.value, "__notes__", [])


def test_the_command_line_ends_with_one_line(tiny_model, tmp_path, capsys, monkeypatch):
    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand much more to read")

    monkeypatch.setattr("vr1.modules.grpo.generate", out_of_memory)
    words = [*small(tiny_model), *steps(), "--trainer.callbacks", "callbacks.OutOfMemoryAdvice"]
    assert run(tmp_path, "fit", *words, "--trainer.num_sanity_val_steps", 0) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "vr1: error" in line]
    assert line.startswith("vr1: error: memory ran out while completions were sampled: lower model.sampling.group_size")
    assert line.endswith("(CUDA out of memory. Tried to allocate 2 GiB)")
