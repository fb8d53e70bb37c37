"""Callbacks that decide for several processes or several batches of a step, without starting processes."""

import json
from functools import partial

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from callbacks import KLCeiling, NonFiniteGuard, RuleRefinement, Stage
from callbacks.schedule import Plateau, PlateauWatch, first_steps
from tests.callbacks.tiny import TinyDetector
from tests.trainers import trainer
from vr1.data import SceneDataModule, SceneStyle
from vr1.losses import GRPO
from vr1.modules.grpo import GRPOModule
from vr1.rewards import Criterion
from vr1.rollout import Sampling

EASY, HARD = Criterion(0.5, 0.5, 0.75), Criterion(0.75, 0.75, 0.9)


class InfiniteLoss(TinyDetector):
    """In some batches the loss is infinite and its gradient is not, so that nothing but the loss shows it."""

    def __init__(self, batches):
        super().__init__()
        self.batches, self.weights = batches, []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss + (torch.inf if batch_idx in self.batches else 0.0)

    def on_train_batch_end(self, *_):
        self.weights.append(float(self.weight))


@pytest.mark.parametrize("bad", [2, 3], ids=["first of its step", "last of its step"])
def test_a_loss_spoilt_in_any_batch_of_a_step_skips_it(tmp_path, bad):
    model, guard = InfiniteLoss({bad}), NonFiniteGuard()
    trainer(tmp_path, [guard], max_steps=4, accumulate_grad_batches=2).fit(model)
    assert guard.skipped == 1
    assert model.weights[3] == model.weights[1]
    assert model.weights[5] != model.weights[3]


class BesideAnother(SingleDeviceStrategy):
    """As if there was one more process, whose steps are all fine or all not."""

    def __init__(self, other_is_fine):
        super().__init__(device="cpu")
        self.other_is_fine = other_is_fine

    def reduce_boolean_decision(self, decision, all=True):
        return (decision and self.other_is_fine) if all else (decision or self.other_is_fine)


@pytest.mark.parametrize(("own", "other"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_step_is_made_where_all_processes_can_make_it(tmp_path, own, other):
    model, guard = InfiniteLoss(set() if own else {1}), NonFiniteGuard(max_consecutive=9)
    trainer(tmp_path, [guard], max_steps=2, strategy=BesideAnother(other)).fit(model)
    assert (model.weights[1] == model.weights[0]) == (not (own and other))


class SpoiltLoss(GRPO):
    """Infinite from the third call on: in the second step, of two batches each."""

    calls = 0

    def __call__(self, terms):
        self.calls += 1
        loss, figures = super().__call__(terms)
        return (loss + torch.inf if self.calls > 2 else loss), figures


def test_the_batch_that_is_written_is_the_one_at_which_the_run_stopped(source, tmp_path):
    module = GRPOModule(
        policy=source,
        sampling=Sampling(group_size=2, max_new_tokens=4),
        loss=SpoiltLoss(kl_coef=0.0),
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )
    seen = []

    class Seen(NonFiniteGuard):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            rollout = module.training_state.rollout_batches[batch_idx % 2]
            seen.append(([record.image_id for record in batch.records], rollout.tokens.clone(), rollout.advantages))
            super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)

    data = SceneDataModule(SceneStyle(), train_scenes=8, val_scenes=1, batch_size=2, num_workers=0)
    run = trainer(tmp_path, [Seen(max_consecutive=1)], max_steps=3, accumulate_grad_batches=2)
    with pytest.raises(ValueError, match="non_finite"):
        run.fit(module, data)
    assert len(seen) == 4
    folder = tmp_path / "non_finite" / "step_000002"
    records, tokens, advantages = seen[-1]
    written = json.loads((folder / "batch.json").read_text())["records"]
    assert [row["image_id"] for row in written] == records
    assert [row["advantages"] for row in written] == [pytest.approx(row.tolist()) for row in advantages]
    stored = torch.load(folder / "tensors.pt", weights_only=True)["rollout_batch"]
    assert torch.equal(stored["tokens"], tokens)


class OneOfTwo(TinyDetector):
    """As if there was one more process, which has logged `other`, or nothing where that is None."""

    def __init__(self, rewards, other):
        super().__init__(rewards)
        self.other = other

    def all_gather(self, data, *_, **__):
        there = torch.tensor([0.0, 0.0] if self.other is None else [self.other, 1.0])
        return torch.stack([data, there.to(data)])


def plateau(**settings):
    waits = Plateau(**({"monitor": "reward/total", "patience": 2, "window": 1} | settings))
    return RuleRefinement([Stage(name="easy", criterion=EASY), Stage(name="hard", criterion=HARD, on_plateau=waits)])


@pytest.mark.parametrize("other", [None, 5.0, 0.0])
def test_the_mean_is_over_the_processes_that_logged(tmp_path, other):
    callback = plateau(min_delta=0.4)
    model = OneOfTwo([1.0, 2.0, 2.5, 2.5, 2.5, 2.5], other)
    trainer(tmp_path, [callback], max_steps=6).fit(model)
    # Means with another's constant rise half as much: 0.5, then 0.25, which is no gain.
    assert callback.first_steps == [0, 5 if other is None else 4]


def observed(values, **settings):
    watch = PlateauWatch(Plateau(**({"monitor": "m", "patience": 2, "window": 1} | settings)), since=0)
    return [watch.observe(value, step) for step, value in enumerate(values, start=1)]


def test_a_metric_to_be_small_is_flat_when_it_gets_worse_again():
    assert observed([3.0, 2.0, 5.0, 6.0], mode="min") == [False, False, False, True]
    assert observed([3.0, 2.0, 5.0, 1.0, 4.0, 4.0], mode="min") == [False, False, False, False, False, True]
    assert observed([5.0, 4.0, 3.0, 2.0], mode="min") == [False] * 4
    assert observed([1.0, 2.0, 0.0, 0.0], mode="max") == [False, False, False, True]


def test_the_window_is_averaged():
    # Means of two are 2 throughout, and 2, 2, 3, 3, 3.
    assert observed([4.0, 0.0, 4.0, 0.0], window=2) == [False, False, False, True]
    assert observed([1.0, 3.0, 1.0, 5.0, 1.0, 5.0], window=2) == [False, False, False, False, False, True]


@pytest.mark.parametrize("total", [10, 30, 100, 1000, 99_999])
@pytest.mark.parametrize("share", [0.07, 0.1, 0.28, 0.35, 0.55, 0.7, 0.57])
def test_a_share_of_a_whole_number_of_steps_begins_at_that_number(share, total):
    """0.07 * 100 is 7.000000000000001 in floating point."""
    from fractions import Fraction

    exact = Fraction(str(share)) * total
    expected = -(-exact.numerator // exact.denominator)
    stages = [Stage(name="easy", criterion=EASY), Stage(name="hard", criterion=HARD, at_fraction=share)]
    assert first_steps(stages, total) == [0, expected]


class LogsKL(TinyDetector):
    def __init__(self, values):
        super().__init__()
        self.kl = values

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("kl", self.kl[self.trainer.global_step])
        return loss


@pytest.mark.filterwarnings("ignore:.*kl.*")
@pytest.mark.parametrize(
    ("values", "ends"),
    [([2.0, 2.0, 2.0, 0.0, 0.0, 0.0], 3), ([2.0, 2.0, 1.0, 2.0, 2.0, 2.0], 6), ([0.0, 2.0, 2.0, 0.5, 2.0, 2.0], 6)],
)
def test_only_steps_in_a_row_above_the_ceiling_count(tmp_path, values, ends):
    run = trainer(tmp_path, [KLCeiling(ceiling=1.0, patience=3, monitor="kl")], max_steps=6)
    run.fit(LogsKL(values))
    assert run.global_step == ends
