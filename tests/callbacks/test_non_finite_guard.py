"""The guard against what is not finite: what a skipped step leaves alone, when the run stops, what it keeps."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image

from callbacks import NonFiniteGuard
from tests.callbacks.tiny import TinyDetector
from tests.trainers import trainer
from vr1.data import SceneDataModule, SceneStyle
from vr1.losses import GRPO
from vr1.modules.grpo import GRPOModule
from vr1.rollout import Sampling


class Spoilt(TinyDetector):
    """Its loss, or only its gradient, is spoilt in some batches."""

    def __init__(self, batches, loss=float("nan"), ranks=(0, 1)):
        super().__init__(scale_by_rank=(1.0, 1.0))
        self.batches, self.spoilt_loss, self.ranks = batches, loss, ranks
        self.states = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if batch_idx not in self.batches or self.global_rank not in self.ranks:
            return loss
        if self.spoilt_loss == "gradient":
            # Finite in itself, with the gradient of a root at 0.
            return loss + (self.weight - self.weight.detach()).abs().sqrt().sum()
        return loss * self.spoilt_loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)

    def on_train_batch_end(self, *_):
        state = self.optimizers().optimizer.state_dict()["state"]
        self.states.append((float(self.weight), {k: float(v) for k, v in state.get(0, {}).items()}))


def fit(tmp_path, model, guard, **settings):
    run = trainer(tmp_path, [guard], **({"max_steps": 8} | settings))
    run.fit(model)
    return run


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), "gradient"])
def test_a_bad_step_changes_nothing(tmp_path, loss):
    model = Spoilt({2, 5}, loss)
    guard = NonFiniteGuard()
    with pytest.warns(UserWarning, match="was skipped: its .* was not finite"):
        run = fit(tmp_path, model, guard)
    assert guard.skipped == 2
    assert float(run.callback_metrics["guard/skipped_steps"]) == 2
    for bad in (2, 5):
        assert model.states[bad] == model.states[bad - 1], "weights, moments and their count are as before"
    assert model.states[3] != model.states[2]
    assert all(abs(weight) < 100 for weight, _ in model.states)


def test_what_is_fine_is_left_alone(tmp_path):
    plain, guarded = Spoilt(set()), Spoilt(set())
    trainer(tmp_path, [], max_steps=5).fit(plain)
    fit(tmp_path, guarded, NonFiniteGuard(), max_steps=5)
    assert guarded.states == plain.states


def test_one_bad_batch_spoils_its_accumulated_step_alone(tmp_path):
    model = Spoilt({2})
    guard = NonFiniteGuard()
    fit(tmp_path, model, guard, max_steps=4, accumulate_grad_batches=2)
    assert guard.skipped == 1
    assert model.states[3] == model.states[1] != model.states[5]


def test_several_in_a_row_stop_the_run(tmp_path):
    guard = NonFiniteGuard(max_consecutive=3)
    told = "the loss was not finite in 3 steps in a row, up to step 6: lower the learning rate"
    with pytest.raises(ValueError, match=told):
        fit(tmp_path, Spoilt({1, 3, 4, 5}), guard)
    assert (guard.skipped, guard.consecutive) == (4, 3)
    assert guard.state_dict() == {"skipped": 4, "consecutive": 3}


class WriteCount(Callback):
    def on_train_end(self, trainer, module):
        guard = next(item for item in trainer.callbacks if isinstance(item, NonFiniteGuard))
        path = Path(trainer.default_root_dir, str(trainer.global_rank))
        path.write_text(f"{guard.skipped} {float(module.weight):.6f}")


def test_two_processes_skip_together(tmp_path):
    # A loss that is infinite on one process only; its gradients are not summed up as NaN on the other by themselves.
    run = trainer(tmp_path, [NonFiniteGuard(), WriteCount()], max_steps=4, devices=2, strategy="ddp_spawn")
    run.fit(Spoilt({1}, ranks=(1,)))
    first, second = ((tmp_path / name).read_text() for name in "01")
    assert first == second
    assert first.startswith("1 ")


class SpoiltLoss(GRPO):
    def total(self, per_token, mask):
        return per_token.sum() * torch.nan


def test_the_batch_is_kept_for_a_look(source, tmp_path):
    module = GRPOModule(
        policy=source,
        sampling=Sampling(group_size=2, max_new_tokens=4),
        loss=SpoiltLoss(kl_coef=0.0),
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
    )
    data = SceneDataModule(SceneStyle(), train_scenes=4, val_scenes=1, batch_size=2, num_workers=0)
    run = trainer(tmp_path, [NonFiniteGuard(max_consecutive=1)], max_steps=2)
    with pytest.raises(ValueError, match=r"the last batch is in .*non_finite/step_000001"):
        run.fit(module, data)
    folder = tmp_path / "non_finite" / "step_000001"
    told = json.loads((folder / "batch.json").read_text())
    assert (told["step"], told["bad"], len(told["records"])) == (1, "loss", 2)
    for row in told["records"]:
        assert len(row["completions"]) == len(row["advantages"]) == 2
        assert Image.open(folder / row["picture"]).size[0] > 10
    tensors = torch.load(folder / "tensors.pt", weights_only=True)
    assert tensors["rollout_batch"]["tokens"].shape[:2] == (2, 2)
    assert tensors["prompts"]["tokens"].shape[0] == 2


def test_bad_settings():
    with pytest.raises(ValueError, match="max_consecutive is 0: give at least 1"):
        NonFiniteGuard(max_consecutive=0)
