"""A warm start is an SFT run, and then a GRPO run with a new optimizer state and schedule."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from callbacks import Curves, RuleRefinement
from callbacks.schedule import Plateau, Stage
from tests.save_at import SaveAt
from tests.trainers import trainer
from vr1.data import SceneDataModule, SceneStyle
from vr1.losses import GRPO
from vr1.modules.grpo import GRPOModule
from vr1.modules.sft import SFTModule
from vr1.modules.warm_start import WarmStart
from vr1.rewards import Criterion, Reward, RewardTerm
from vr1.rollout import Sampling

STEPS = 3


class Alternating(RewardTerm):
    """A reward that differs between the completions of an untrained model."""

    def score(self, match, criterion):
        return len(match.detections.completion) % 7 / 7


class Diary(Callback):
    """Learning rate, and whether a reward and a supervised loss were logged, of every step."""

    def __init__(self):
        self.rates, self.supervised, self.rewarded, self.sampled = [], [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.supervised.append(module.training_state.warm_start)
        self.sampled.append(module.training_state.scored_groups is not None)
        self.rewarded.append("reward/total" in trainer.callback_metrics)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


def grpo(source, **settings):
    return GRPOModule(
        policy=source,
        reward=Reward(terms={"length": Alternating()}),
        sampling=Sampling(group_size=3, max_new_tokens=6),
        optimizer=partial(torch.optim.AdamW, lr=2e-3, weight_decay=0.0),
        seed=1,
        **({"warm_start": WarmStart(steps=STEPS, lr=1e-2), "loss": GRPO(kl_coef=0.0)} | settings),
    )


def fit(module, folder, steps, callbacks=(), ckpt_path=None, **settings):
    data = SceneDataModule(
        SceneStyle(num_objects=(2, 4)), train_scenes=8, val_scenes=2, batch_size=2, num_workers=0, shuffle=False
    )
    running = trainer(folder, callbacks, max_steps=steps, max_epochs=-1, **settings)
    running.fit(module, data, ckpt_path=ckpt_path, weights_only=False if ckpt_path else None)
    return running


def weights(module):
    return {name: parameter.detach().clone() for name, parameter in module.policy.named_parameters()}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_its_steps_are_those_of_supervised_training(source, tmp_path, accumulate):
    warm = grpo(source)
    diary = Diary()
    fit(warm, tmp_path, STEPS, [diary], accumulate_grad_batches=accumulate)
    supervised = SFTModule(
        policy=source, target_order="sorted", optimizer=partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.0)
    )
    fit(supervised, tmp_path, STEPS, accumulate_grad_batches=accumulate)
    expected = weights(supervised)
    assert all(torch.equal(value, expected[name]) for name, value in weights(warm).items())
    assert diary.rates == [1e-2] * STEPS
    assert diary.sampled == [False] * STEPS


def test_then_rewards_take_over_with_their_own_rate_and_schedule(source, tmp_path):
    module = grpo(source, lr_scheduler=partial(torch.optim.lr_scheduler.LinearLR, start_factor=0.5, total_iters=2))
    diary = Diary()
    running = fit(module, tmp_path, STEPS + 4, [diary], accumulate_grad_batches=2)
    assert diary.rates == pytest.approx([1e-2] * STEPS + [1e-3, 1.5e-3, 2e-3, 2e-3])
    assert diary.supervised == [True] * STEPS + [False] * 4
    assert diary.rewarded == [False] * STEPS + [True] * 4
    # The history of the supervised gradients is gone.
    [optimizer] = running.optimizers
    assert {float(state["step"]) for state in optimizer.state.values()} == {4.0}


@pytest.mark.parametrize("saved", [STEPS - 1, STEPS, STEPS + 1])
def test_a_run_resumed_before_at_or_after_the_change_is_exact(source, tmp_path, saved):
    schedule = {"lr_scheduler": partial(torch.optim.lr_scheduler.LinearLR, start_factor=0.5, total_iters=4)}
    uninterrupted = grpo(source, **schedule)
    fit(uninterrupted, tmp_path, STEPS + 3)
    file = tmp_path / "stop.ckpt"
    fit(grpo(source, **schedule), tmp_path, STEPS + 3, [SaveAt(saved, file)], enable_checkpointing=True)
    resumed = grpo(source, **schedule)
    fit(resumed, tmp_path, STEPS + 3, ckpt_path=file)
    expected = weights(uninterrupted)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())


class Scripted(GRPOModule):
    """Its validations come to given figures."""

    figures = ()

    def after_validation(self, figures):
        super().after_validation({"map": torch.tensor(self.figures[self.trainer.global_step])})


VALIDATED = {"val_check_interval": 1, "check_val_every_n_epoch": None, "limit_val_batches": 1}
MAP = [0.0, 0.0, 0.0, 0.2, 0.1, 0.3, 0.3, 0.2, 0.9, 0.9, 0.9]


@pytest.mark.parametrize(("patience", "end"), [(None, 8), (1, 4), (2, 7), (3, 8)])
def test_the_warm_start_ends_where_validations_no_longer_improve(source, tmp_path, patience, end):
    module, diary = scripted(source, patience), Diary()
    fit(module, tmp_path, 9, [diary], **VALIDATED)
    assert diary.supervised == [True] * end + [False] * (9 - end)
    assert diary.rates == pytest.approx([1e-2] * end + [2e-3] * (9 - end))


# A checkpoint in the hook of a batch is before its validation, which a resumed run does not make up for.
@pytest.mark.parametrize(("saved", "hook"), [(5, "validation"), (7, "validation"), (8, "validation"), (8, "batch")])
def test_a_run_resumed_around_an_early_end_is_exact(source, tmp_path, saved, hook):
    whole, file = scripted(source, 2), tmp_path / "stop.ckpt"
    fit(whole, tmp_path, 9, [SaveAt(saved, file, hook)], enable_checkpointing=True, **VALIDATED)
    resumed, diary = scripted(source, 2), Diary()
    fit(resumed, tmp_path, 9, [diary], ckpt_path=file, **VALIDATED)
    assert diary.supervised == ([True] * 7 + [False] * 2)[saved:]
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())


def scripted(source, patience):
    module = Scripted(
        policy=source,
        reward=Reward(terms={"length": Alternating()}),
        sampling=Sampling(group_size=3, max_new_tokens=6),
        evaluation=Sampling(group_size=1, temperature=0.0, max_new_tokens=4),
        optimizer=partial(torch.optim.AdamW, lr=2e-3, weight_decay=0.0),
        seed=1,
        warm_start=WarmStart(steps=8, lr=1e-2, patience=patience),
        loss=GRPO(kl_coef=0.0),
    )
    module.figures = MAP
    return module


def test_a_plateau_of_the_rewards_waits_for_the_rewards(source, tmp_path):
    stages = [
        Stage(name="first", criterion=Criterion(0.5, 0.0, 1.0)),
        Stage(
            name="second",
            criterion=Criterion(),
            on_plateau=Plateau(monitor="reward/total", patience=2, window=1, min_delta=10.0),
        ),
    ]
    refinement = RuleRefinement(stages)
    fit(grpo(source), tmp_path, STEPS + 4, [refinement])
    # Seen first after one step with rewards; two more without a gain of 10.
    assert refinement.first_steps == [0, STEPS + 3]


def test_curves_show_where_the_rewards_begin(source, tmp_path):
    curves = Curves()
    fit(grpo(source), tmp_path, STEPS + 2, [curves])
    assert curves.switches == [(STEPS, "rewards")]
    assert [step for step, _ in curves.history.series["sft/loss"]] == [1, 2, 3]
    assert [step for step, _ in curves.history.series["reward/total"]] == [4, 5]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"steps": 0, "lr": 1e-3}, "steps=0"),
        ({"steps": 5, "lr": 0.0}, "lr=0.0"),
        ({"steps": 5, "lr": 0.1, "patience": 0}, "patience=0"),
    ],
)
def test_settings_out_of_range_are_errors(settings, named):
    with pytest.raises(ValueError, match=named):
        WarmStart(**settings)


def test_a_reference_of_before_is_refused(source):
    with pytest.raises(ValueError, match=r"kl_coef=0\.2: the reference of the KL term would be the model before"):
        grpo(source, loss=GRPO(kl_coef=0.2))
