"""The average of the weights against one computed by hand, and a training that goes on as if there were none."""

from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from callbacks import NonFiniteGuard, WeightAverage
from tests.checkpoints.test_resume import RewardedByHash
from tests.save_at import SaveAt
from tests.trainers import trainer
from vr1.checkpoints.trained import load_trained
from vr1.data import SceneDataModule, SceneStyle
from vr1.errors import UserError
from vr1.optimizers import MuonAdamW
from vr1.policy import Lora, PolicySource
from vr1.rollout import Sampling

DECAY, STEPS = 0.7, 6
OPTIMIZERS = {"adamw": partial(torch.optim.AdamW, lr=1e-2), "muon": partial(MuonAdamW, lr=1e-2)}
LORAS = {"full": None, "lora": Lora(rank=2)}


class Weights(Callback):
    """The trained weights at the start, after every step, and in every validation."""

    def __init__(self):
        self.start, self.after, self.validated = {}, [], {}

    def of(self, module):
        return {name: value.detach().clone() for name, value in module.named_parameters() if value.requires_grad}

    def on_train_batch_start(self, trainer, module, *_):
        self.start = self.start or self.of(module)

    def on_train_batch_end(self, trainer, module, *_):
        self.after.append(self.of(module))

    def on_validation_batch_start(self, trainer, module, *_):
        self.validated[trainer.global_step] = self.of(module)


def fit(source, folder, *, average=True, optimizer="adamw", steps=STEPS, callbacks=(), ckpt_path=None, first=False):
    torch.manual_seed(0)
    module = RewardedByHash(
        policy=source,
        sampling=Sampling(group_size=2, max_new_tokens=5),
        evaluation=Sampling(group_size=1, temperature=0.0, max_new_tokens=5),
        seed=2,
        optimizer=OPTIMIZERS[optimizer],
    )
    seen, own = Weights(), [WeightAverage(DECAY)] if average else []
    given = [*own, seen, *callbacks] if first else [seen, *callbacks, *own]
    settings = {"max_steps": steps, "max_epochs": -1, "limit_val_batches": 1, "val_check_interval": 2}
    training = trainer(
        folder,
        given,
        **settings,
        check_val_every_n_epoch=None,
        enable_checkpointing=bool(callbacks),
        num_sanity_val_steps=1,
    )
    data = SceneDataModule(SceneStyle(), train_scenes=13, val_scenes=1, batch_size=2, num_workers=0, seed=3)
    training.fit(module, data, ckpt_path=ckpt_path)
    return module, seen, training


def by_hand(after):
    """The average after each step."""
    averages = after[:1]
    for weights in after[1:]:
        averages.append({name: DECAY * averages[-1][name] + (1 - DECAY) * value for name, value in weights.items()})
    return averages


def assert_equal(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, **tolerance)


@pytest.fixture(scope="module")
def plainly(tiny_model, tmp_path_factory):
    """What a training without an average has, once for each kind."""

    @cache
    def train(lora, optimizer):
        source = PolicySource(path=str(tiny_model), lora=LORAS[lora])
        return fit(source, tmp_path_factory.mktemp("plain"), average=False, optimizer=optimizer)[1]

    return train


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("lora", LORAS)
def test_validation_and_the_end_have_the_average_and_training_goes_on(
    source, tmp_path, plainly, optimizer, first, lora
):
    source, plain = replace(source, lora=LORAS[lora]), plainly(lora, optimizer)
    module, seen, _ = fit(source, tmp_path, optimizer=optimizer, first=first)
    assert len(seen.after) == STEPS
    for ours, theirs in zip(seen.after, plain.after, strict=True):
        assert_equal(ours, theirs, rtol=0, atol=0)
    averages = by_hand(plain.after)
    assert sorted(seen.validated) == [0, 2, 4, 6]
    for step in (2, 4, 6):
        assert_equal(seen.validated[step], averages[step - 1], rtol=1e-5, atol=1e-7)
    assert_equal(seen.of(module), averages[-1], rtol=1e-5, atol=1e-7)
    distance = max(float((averages[-1][name] - value).abs().max()) for name, value in plain.after[-1].items())
    assert distance > 1e-3, "the average is not just the weights"


@pytest.mark.parametrize("hook", ["batch", "validation"])
@pytest.mark.parametrize("first", [True, False])
def test_a_checkpoint_has_the_average_and_resumes_exactly(source, tmp_path, hook, first):
    whole_module, whole, whole_training = fit(
        source, tmp_path, callbacks=[SaveAt(4, tmp_path / "four.ckpt", hook)], first=first
    )
    _, policy = load_trained(str(tmp_path / "four.ckpt"))
    weights = dict(policy.named_parameters())
    average = by_hand(whole.after)[3]
    assert_equal({f"policy.{name}": value.detach() for name, value in weights.items()}, average, rtol=1e-5, atol=1e-7)
    saved = torch.load(tmp_path / "four.ckpt", weights_only=True)["state_dict"]
    tied = [name for name in saved if name.endswith(("lm_head.weight", "embed_tokens.weight"))]
    assert torch.equal(*(saved[name] for name in tied)), "both names of a tied weight have the average"

    module, resumed, training = fit(source, tmp_path, ckpt_path=tmp_path / "four.ckpt", first=first)
    for ours, theirs in zip(resumed.after, whole.after[4:], strict=True):
        assert_equal(ours, theirs, rtol=0, atol=0)
    assert_equal(whole.of(module), whole.of(whole_module), rtol=0, atol=0)
    for ours, theirs in zip(*(loop.optimizers[0].state.values() for loop in (training, whole_training)), strict=True):
        assert_equal(ours, theirs, rtol=0, atol=0)


def test_a_checkpoint_of_the_end_goes_on_from_the_latest_weights(source, tmp_path):
    module, first, training = fit(source, tmp_path, steps=3)
    training.save_checkpoint(tmp_path / "end.ckpt")
    state = torch.load(tmp_path / "end.ckpt", weights_only=True)["state_dict"]
    assert_equal({name: state[name] for name in first.after[0]}, first.of(module), rtol=0, atol=0)
    _, resumed, _ = fit(source, tmp_path, ckpt_path=tmp_path / "end.ckpt")
    assert_equal(resumed.start, first.after[-1], rtol=0, atol=0)


class SpoiltOnce(RewardedByHash):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.global_step == 0 else loss


def test_a_first_step_that_is_skipped(source, tmp_path):
    module = SpoiltOnce(policy=source, sampling=Sampling(group_size=2, max_new_tokens=5), optimizer=OPTIMIZERS["adamw"])
    seen = Weights()
    data = SceneDataModule(SceneStyle(), train_scenes=13, val_scenes=1, batch_size=2, num_workers=0, seed=3)
    with pytest.warns(UserWarning, match="was skipped"):
        trainer(tmp_path, [NonFiniteGuard(), seen, WeightAverage(DECAY)], max_steps=3, max_epochs=-1).fit(module, data)
    assert_equal(seen.of(module), by_hand(seen.after[1:])[-1], rtol=1e-5, atol=1e-7)


def test_weights_that_are_too_coarse_are_refused(source, tmp_path):
    with pytest.raises(UserError, match=r"WeightAverage: policy\..* is trained in torch.bfloat16, .* bf16-mixed"):
        fit(replace(source, dtype="bfloat16"), tmp_path)


def test_a_second_average_is_refused(source, tmp_path):
    with pytest.raises(UserError, match=r"WeightAverage is there twice, .*; leave one out"):
        fit(source, tmp_path, callbacks=[WeightAverage(0.9)])


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(UserError, match=r"decay=.* must be at least 0 and below 1"):
        WeightAverage(decay)
