"""The guards: what a skipped step leaves unchanged, when a run stops, and which settings an error names."""

import json
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image

from callbacks import KLCeiling, NonFiniteGuard, OutOfMemoryAdvice
from tests.callbacks.tiny import TinyDetector
from tests.command import run, small, steps
from tests.processes import two_ranks
from tests.trainers import trainer
from vr1.data import SceneDataModule, SceneStyle
from vr1.losses import GRPO
from vr1.modules.grpo import GRPOModule
from vr1.modules.state import TrainingState
from vr1.rollout import Sampling


class NonFinite(TinyDetector):
    """Its loss, or only its gradient, is not finite in some batches."""

    def __init__(self, batches, loss=float("nan"), ranks=(0, 1)):
        super().__init__(scale_by_rank=(1.0, 1.0))
        self.batches, self.factor, self.ranks = batches, loss, ranks
        self.states = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if batch_idx not in self.batches or self.global_rank not in self.ranks:
            return loss
        if self.factor == "gradient":
            # A finite value whose gradient, that of a square root at 0, is not.
            return loss + (self.weight - self.weight.detach()).abs().sqrt().sum()
        return loss * self.factor

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)

    def on_train_batch_end(self, *_):
        state = self.optimizers().optimizer.state_dict()["state"]
        self.states.append((float(self.weight), {k: float(v) for k, v in state.get(0, {}).items()}))


def fit(tmp_path, model, guard, **settings):
    loop = trainer(tmp_path, [guard], **({"max_steps": 8} | settings))
    loop.fit(model)
    return loop


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), "gradient"])
def test_a_skipped_step_changes_nothing(tmp_path, loss):
    model = NonFinite({2, 5}, loss)
    guard = NonFiniteGuard()
    with pytest.warns(UserWarning, match="was skipped: its .* was not finite"):
        loop = fit(tmp_path, model, guard)
    assert guard.skipped == 2
    assert float(loop.callback_metrics["guard/skipped_steps"]) == 2
    for skipped in (2, 5):
        assert model.states[skipped] == model.states[skipped - 1], "weights and optimizer state are unchanged"
    assert model.states[3] != model.states[2]
    assert all(abs(weight) < 100 for weight, _ in model.states)


def test_finite_steps_are_unchanged(tmp_path):
    plain, guarded = NonFinite(set()), NonFinite(set())
    trainer(tmp_path, [], max_steps=5).fit(plain)
    fit(tmp_path, guarded, NonFiniteGuard(), max_steps=5)
    assert guarded.states == plain.states


def test_a_non_finite_batch_skips_its_accumulated_step_alone(tmp_path):
    model = NonFinite({2})
    guard = NonFiniteGuard()
    fit(tmp_path, model, guard, max_steps=4, accumulate_grad_batches=2)
    assert guard.skipped == 1
    assert model.states[3] == model.states[1] != model.states[5]


def test_several_in_a_row_stop_the_run(tmp_path):
    guard = NonFiniteGuard(max_consecutive=3)
    error = "the loss was not finite in 3 steps in a row, up to step 6: lower the learning rate"
    with pytest.raises(ValueError, match=error):
        fit(tmp_path, NonFinite({1, 3, 4, 5}), guard)
    assert (guard.skipped, guard.consecutive) == (4, 3)
    assert guard.state_dict() == {"skipped": 4, "consecutive": 3}


class WriteCount(Callback):
    def on_train_end(self, trainer, module):
        guard = next(item for item in trainer.callbacks if isinstance(item, NonFiniteGuard))
        path = Path(trainer.default_root_dir, str(trainer.global_rank))
        path.write_text(f"{guard.skipped} {float(module.weight):.6f}")


def test_two_processes_skip_together(tmp_path):
    # The loss is infinite on one process only; the other must skip the step as well.
    loop = trainer(tmp_path, [NonFiniteGuard(), WriteCount()], max_steps=4, **two_ranks())
    loop.fit(NonFinite({1}, ranks=(1,)))
    first, second = ((tmp_path / name).read_text() for name in "01")
    assert first == second
    assert first.startswith("1 ")


class NonFiniteLoss(GRPO):
    def total(self, per_token, mask):
        return per_token.sum() * torch.nan


def test_the_batch_is_saved(source, tmp_path):
    module = GRPOModule(
        policy=source,
        sampling=Sampling(group_size=2, max_new_tokens=4),
        loss=NonFiniteLoss(kl_coef=0.0),
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
    )
    data = SceneDataModule(SceneStyle(), train_scenes=4, val_scenes=1, batch_size=2, num_workers=0)
    loop = trainer(tmp_path, [NonFiniteGuard(max_consecutive=1)], max_steps=2)
    with pytest.raises(ValueError, match=r"the last batch is in .*non_finite/step_000001"):
        loop.fit(module, data)
    folder = tmp_path / "non_finite" / "step_000001"
    content = json.loads((folder / "batch.json").read_text())
    assert (content["step"], content["not_finite"], len(content["records"])) == (1, "loss", 2)
    for row in content["records"]:
        assert len(row["completions"]) == len(row["advantages"]) == 2
        assert Image.open(folder / row["picture"]).size[0] > 10
    tensors = torch.load(folder / "tensors.pt", weights_only=True)
    assert tensors["rollout_batch"]["tokens"].shape[:2] == (2, 2)
    assert tensors["prompts"]["tokens"].shape[0] == 2


def test_bad_settings_of_the_non_finite_guard():
    with pytest.raises(ValueError, match="max_consecutive is 0: give at least 1"):
        NonFiniteGuard(max_consecutive=0)


class WithKL(TinyDetector):
    """Logs the given values as KL."""

    def __init__(self, kl):
        super().__init__()
        self.kl = kl

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.kl:
            self.log("my/kl", self.kl[self.trainer.global_step])
        return loss


def trained_steps(tmp_path, kl, **settings):
    loop = trainer(tmp_path, [KLCeiling(monitor="my/kl", **settings)], max_steps=len(kl) or 1)
    loop.fit(WithKL(kl))
    return loop.global_step


def test_a_kl_that_rises_above_warns_once(tmp_path):
    with pytest.warns(UserWarning, match="above the ceiling") as raised:
        assert trained_steps(tmp_path, [0.1, 0.6, 0.7, 0.1, 0.9, 0.1], ceiling=0.5, patience=3) == 6
    above = [str(item.message) for item in raised if "above the ceiling" in str(item.message)]
    assert [text.split(" at step ")[1][0] for text in above] == ["2", "5"]
    assert "my/kl is 0.6 at step 2, above the ceiling of 0.5" in above[0]


def test_training_ends_where_the_kl_stays_above(tmp_path):
    with pytest.warns(UserWarning, match="training ends at step 5: my/kl was above 0.5 for 3 steps in a row"):
        assert trained_steps(tmp_path, [0.1, 0.1, 0.6, 0.7, 0.8, 0.9, 0.9], ceiling=0.5, patience=3) == 5


def test_a_kl_of_nan_is_above_the_ceiling(tmp_path):
    with pytest.warns(UserWarning, match="my/kl was above 0.5 for 2 steps in a row"):
        assert trained_steps(tmp_path, [0.1, float("nan"), float("nan"), 0.1], ceiling=0.5, patience=2) == 3


def test_without_patience_it_only_warns(tmp_path):
    assert trained_steps(tmp_path, [0.6] * 5, ceiling=0.5, patience=0) == 5


def test_below_the_ceiling_there_is_no_warning(tmp_path):
    with warnings.catch_warnings(record=True) as raised:
        assert trained_steps(tmp_path, [0.5] * 3, ceiling=0.5, patience=1) == 3
    assert not [item for item in raised if "ceiling" in str(item.message)]


def test_a_metric_that_is_not_logged(tmp_path):
    with pytest.raises(ValueError, match=r"monitors 'my/kl', which is not logged: set model\.loss\.kl_coef above 0"):
        trained_steps(tmp_path, [])


@pytest.mark.parametrize("setting", [{"ceiling": 0.0}, {"ceiling": float("nan")}, {"patience": -1}])
def test_bad_settings_of_the_kl_ceiling(setting):
    with pytest.raises(ValueError, match=f"KLCeiling: {next(iter(setting))} is"):
        KLCeiling(**setting)


class OutOfMemory(TinyDetector):
    """Raises an error in one part of the step."""

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
    ("part", "advice"),
    [
        ("rollout", "lower model.sampling.group_size"),
        ("reference", "lower data.batch_size"),
        ("policy", "set model.policy.gradient_checkpointing true"),
    ],
)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError("all gone")])
def test_the_advice_depends_on_the_part(tmp_path, part, advice, error):
    error.__notes__ = []
    with pytest.raises(type(error)) as raised:
        trainer(tmp_path, [OutOfMemoryAdvice()]).fit(OutOfMemory(part, error))
    [note] = raised.value.__notes__
    assert note.startswith("memory ran out")
    assert advice in note


def test_evaluation_has_its_own_advice(tmp_path):
    with pytest.raises(MemoryError) as raised:
        trainer(tmp_path, [OutOfMemoryAdvice()], limit_val_batches=1).validate(OutOfMemory("policy", MemoryError()))
    assert "lower data.eval_batch_size" in raised.value.__notes__[0]


def test_other_errors_get_no_advice(tmp_path):
    with pytest.raises(RuntimeError) as raised:
        trainer(tmp_path, [OutOfMemoryAdvice()]).fit(OutOfMemory("rollout", RuntimeError("shapes differ")))
    assert not getattr(raised.value, "__notes__", [])


def test_the_command_line_prints_the_advice_alone(tiny_model, tmp_path, capsys, monkeypatch):
    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand much more to read")

    monkeypatch.setattr("vr1.rollout.sampler.generate", out_of_memory)
    arguments = [*small(tiny_model), *steps(), "--trainer.callbacks", "callbacks.OutOfMemoryAdvice"]
    assert run(tmp_path, "fit", *arguments, "--trainer.num_sanity_val_steps", 0) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "vr1: error" in line]
    assert line.startswith("vr1: error: memory ran out while completions were sampled: lower model.sampling.group_size")
    assert line.endswith("(CUDA out of memory. Tried to allocate 2 GiB)")
