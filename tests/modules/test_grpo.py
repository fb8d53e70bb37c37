"""GRPO training through a real Trainer, with a tiny untrained model and synthetic scenes."""

from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from vr1.data import SceneDataModule, SceneStyle
from vr1.losses import GRPO
from vr1.modules.grpo import GRPOModule, replace_groups
from vr1.policy import Lora, Policy
from vr1.rewards import Reward, RewardTerm
from vr1.rollout import Sampling
from vr1.types import Rollout


class CountsCommas(RewardTerm):
    """A reward that an untrained model earns, differently by every completion."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def score(self, match, criterion) -> float:
        self.calls += 1
        return float(match.detections.well_formed) + (self.calls * 7919 % 13) / 13


class Same(RewardTerm):
    """A reward that every completion earns."""

    def score(self, match, criterion) -> float:
        return 0.3


def build(source, kind=GRPOModule, **settings) -> GRPOModule:
    return kind(
        policy=source,
        reward=settings.pop("reward", None) or Reward(terms={"commas": CountsCommas()}),
        sampling=Sampling(group_size=3, max_new_tokens=6),
        evaluation=Sampling(group_size=1, temperature=0.0, max_new_tokens=6),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        **settings,
    )


def fit(module, tmp_path, steps=2, ckpt_path=None, scenes=8, shuffle=True, **settings):
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=tmp_path,
        **settings,
    )
    data = SceneDataModule(
        SceneStyle(), train_scenes=scenes, val_scenes=4, batch_size=2, num_workers=0, shuffle=shuffle
    )
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=False if ckpt_path else None)
    return trainer


def weights(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def test_a_step_updates_the_policy_and_logs_what_it_did(source, tmp_path):
    module = build(source)
    module.configure_model()
    before = weights(module)
    trainer = fit(module, tmp_path)
    assert any((before[name] != value).any() for name, value in weights(module).items())
    logged = trainer.callback_metrics
    for name in (
        "reward/total",
        "reward/commas",
        "grpo/loss",
        "grpo/kl",
        "grpo/clip_fraction",
        "grpo/zero_variance_groups",
        "grpo/entropy",
        "grpo/completion_tokens",
        "perf/tokens_per_second",
    ):
        assert torch.isfinite(logged[name]), name


def test_equal_rewards_do_not_change_the_policy(source, tmp_path):
    module = build(source, reward=Reward(terms={"same": Same()}), loss=GRPO(kl_coef=0.0))
    module.configure_model()
    before = weights(module)
    trainer = fit(module, tmp_path)
    assert trainer.callback_metrics["grpo/zero_variance_groups"] == 1
    for name, value in weights(module).items():
        assert (before[name] == value).all(), name


def test_no_kl_means_no_reference(source, tmp_path):
    module = build(source, loss=GRPO(kl_coef=0.0))
    trainer = fit(module, tmp_path, steps=1)
    assert module.reference is None
    assert "grpo/kl" not in trainer.callback_metrics


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["copy", "adapters_off"])
def test_reference_stays_where_training_began(source, tmp_path, prompts, ragged_completions, lora):
    tokens, mask = ragged_completions
    module = build(replace(source, lora=lora))
    module.configure_model()
    with torch.no_grad():
        start, _ = module.policy.log_probs(prompts, tokens, mask)
    fit(module, tmp_path, steps=3)
    reference = module.reference.log_probs(prompts, tokens, mask, temperature=1.0)
    torch.testing.assert_close(reference, start, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        now, _ = module.policy.log_probs(prompts, tokens, mask)
    assert (now - start).abs().max() > 1e-6
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert all("lora" in name for name in names) == (lora is not None)


def test_the_reference_is_neither_trained_nor_stored(source):
    module = build(source)
    module.configure_model()
    assert not [name for name in module.state_dict() if "reference" in name]
    assert len(list(module.parameters())) == len(list(module.policy.parameters()))


def test_evaluation_holds_no_reference(source, tmp_path):
    module = build(source)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.validate(module, SceneDataModule(SceneStyle(), val_scenes=2, num_workers=0), verbose=False)
    assert module.reference is None
    fit(module, tmp_path, steps=1)
    assert module.reference is not None


class Collecting(GRPOModule):
    """Counts its rollouts."""

    collected = 0

    def collect(self, batch):
        self.collected += 1
        return super().collect(batch)


def test_several_updates_use_one_rollout(source, tmp_path):
    ratios = []

    class Watched(GRPO):
        def log_ratio(self, terms):
            ratios.append(super().log_ratio(terms))
            return ratios[-1]

    module = build(source, Collecting, updates_per_rollout=2, loss=Watched(kl_coef=0.0))
    fit(module, tmp_path, steps=4)
    assert module.collected == 2
    assert all((ratios[step] == 0).all() for step in (0, 2)), "the first update is on policy"
    assert all((ratios[step] != 0).any() for step in (1, 3)), "the second is not"


def test_accumulation_with_several_updates_has_one_rollout_for_each_batch(source, tmp_path):
    module = build(source, Collecting, updates_per_rollout=2)
    fit(module, tmp_path, steps=2, accumulate_grad_batches=2)
    assert module.collected == 2
    assert len(module.training_state.rollout_batches) == 2


def test_truncated_completions_can_be_masked(source, tmp_path):
    module = build(source, seed=4, loss=GRPO(kl_coef=0.0, mask_truncated=True))
    module.configure_model()
    before = weights(module)
    trainer = fit(module, tmp_path, steps=1)
    # With this seed the untrained model never ends within six tokens, so all completions are masked.
    assert trainer.callback_metrics["grpo/truncated"] == 1
    for name, value in weights(module).items():
        assert (before[name] == value).all(), name


class Attempts(GRPOModule):
    """Notes its attempts, and whether the prompts were read before."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.attempts = []

    def sample(self, batch, attempt=0, prefix=None):
        self.attempts.append((attempt, prefix is not None))
        return super().sample(batch, attempt, prefix)


def test_zero_variance_groups_are_resampled(source, tmp_path):
    module = build(source, Attempts, reward=Reward(terms={"same": Same()}), resample_zero_variance=2)
    fit(module, tmp_path, steps=1)
    assert module.attempts == [(0, False), (1, True), (2, True)], "each attempt but the first reuses the prefix"


def test_only_rewards_that_are_trained_on_count(source, tmp_path):
    """Resampled groups replace the first ones, in the logged value and in the term's mean."""

    class ByAttempt(RewardTerm):
        """The same for all completions of an attempt."""

        calls = 0

        def scores(self, matches, criterion):
            self.calls += 1
            return torch.full((len(matches),), float(self.calls))

        def score(self, match, criterion) -> float:
            raise AssertionError("scores() gives the rewards of all completions at once")

    term = ByAttempt()
    module = build(source, reward=Reward(terms={"attempt": term}), resample_zero_variance=2)
    trainer = fit(module, tmp_path, steps=1)
    assert trainer.callback_metrics["reward/attempt"] == trainer.callback_metrics["reward/total"] == 3


class EpochMeans(GRPOModule):
    """Logs its terms for each epoch too, as any metric can be logged."""

    def on_train_epoch_end(self):
        self.log("epoch/commas", self.reward.terms["commas"])
        self.log("epoch/total", self.reward.total)


def test_a_term_is_logged_by_step_and_can_be_by_epoch(source, tmp_path):
    steps, epochs = [], []

    class Values(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            steps.append(float(trainer.callback_metrics["reward/commas"]))
            scores = module.training_state.scored_groups
            assert steps[-1] == pytest.approx(float(scores.terms["commas"].mean()))
            assert float(trainer.callback_metrics["reward/total"]) == pytest.approx(float(scores.rewards.mean()))

        def on_train_epoch_start(self, trainer, *_):
            epochs.append(trainer.callback_metrics.get("epoch/commas"))

        def on_train_end(self, trainer, *_):
            epochs.append(trainer.callback_metrics["epoch/commas"])

    fit(build(source, EpochMeans), tmp_path, steps=4, scenes=4, callbacks=[Values()])
    assert len(set(steps)) == 4
    assert [float(value) for value in epochs[1:]] == pytest.approx([sum(steps[:2]) / 2, sum(steps[2:]) / 2])


@pytest.mark.parametrize(
    ("settings", "changes", "read"),
    [
        ({}, {}, [True, False]),
        ({"loss": GRPO(kl_coef=0.0)}, {}, [True]),
        ({"loss": GRPO(kl_coef=0.0)}, {"gradient_checkpointing": True}, [True]),
        # The second update has other weights than those that read the prompts for the rollout.
        ({"loss": GRPO(kl_coef=0.0), "updates_per_rollout": 2}, {}, [True, True]),
        # With dropout, the policy that samples differs from the one that is trained.
        ({"loss": GRPO(kl_coef=0.0)}, {"lora": Lora(rank=2, dropout=0.1)}, [False, True]),
    ],
    ids=["with a reference", "alone", "recomputed", "two updates", "dropout"],
)
def test_a_step_reads_its_prompts_as_often_as_it_must(source, tmp_path, monkeypatch, settings, changes, read):
    module = build(replace(source, **changes), **settings)
    with_graph = []
    original = Policy.prefill

    def counted(policy, prompts):
        with_graph.append(torch.is_grad_enabled())
        return original(policy, prompts)

    monkeypatch.setattr(Policy, "prefill", counted)
    fit(module, tmp_path, steps=settings.get("updates_per_rollout", 1))
    assert with_graph == read


class ReadsPromptsTwice(GRPOModule):
    def reuses_prefix(self):
        return False


def test_reusing_the_prefix_of_the_rollout_changes_no_update(source, tmp_path):
    once = build(source)
    fit(once, tmp_path)
    twice = build(source, ReadsPromptsTwice)
    fit(twice, tmp_path)
    for name, value in weights(once).items():
        torch.testing.assert_close(value, weights(twice)[name], atol=1e-5, rtol=1e-4)


def test_a_seed_fixes_everything(source, tmp_path):
    def run(seed):
        pl.seed_everything(0)
        module = build(source, seed=seed)
        fit(module, tmp_path)
        return weights(module)

    first, again, other = run(1), run(1), run(2)
    assert all((first[name] == again[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


def test_resume_with_a_rollout_in_flight_is_exact(source, tmp_path):
    uninterrupted = build(source, updates_per_rollout=2)
    fit(uninterrupted, tmp_path, steps=4, scenes=2, shuffle=False)
    first = build(source, updates_per_rollout=2)
    fit(first, tmp_path, steps=3, scenes=2, shuffle=False).save_checkpoint(tmp_path / "three.ckpt")
    second = build(source, updates_per_rollout=2)
    fit(second, tmp_path, steps=4, scenes=2, shuffle=False, ckpt_path=tmp_path / "three.ckpt")
    for name, value in weights(uninterrupted).items():
        assert (weights(second)[name] == value).all(), name


def test_each_process_resumes_with_its_own_part_of_a_rollout(source, tmp_path, monkeypatch):
    file = tmp_path / "three.ckpt"
    fit(build(source, updates_per_rollout=2), tmp_path, steps=3, scenes=2, shuffle=False).save_checkpoint(file)
    [[stored]] = torch.load(file, weights_only=True)["vr1_rollouts"]
    assert len(stored["tokens"]) == 2
    assert not torch.equal(*stored["tokens"])
    for rank in (0, 1):
        module = build(source, updates_per_rollout=2)
        module.configure_model()
        module.trainer = pl.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
        module.trainer.state.fn = TrainerFn.FITTING
        share = SimpleNamespace(rank=rank, world=2)
        monkeypatch.setattr(import_module("vr1.modules.grpo"), "data_share", lambda _, share=share: share)
        module.on_load_checkpoint(torch.load(file, weights_only=True))
        tokens = module.training_state.rollout_batches[0].tokens
        assert torch.equal(tokens, stored["tokens"][rank : rank + 1, :, : tokens.shape[-1]])


def test_groups_are_replaced_entirely():
    def rollout(value, length):
        return Rollout(
            tokens=torch.full((2, 2, length), value),
            mask=torch.ones(2, 2, length, dtype=torch.bool),
            finished=torch.tensor([[value == 1] * 2] * 2),
            log_probs=torch.full((2, 2, length), -float(value)),
            texts=[[str(value)] * 2] * 2,
            seconds={"decode": 1.0},
        )

    merged = replace_groups(rollout(1, 2), rollout(2, 3), torch.tensor([False, True]))
    assert merged.texts == [["1", "1"], ["2", "2"]]
    assert merged.tokens.tolist() == [[[1, 1, 0]] * 2, [[2, 2, 2]] * 2]
    assert merged.mask.sum(-1).tolist() == [[2, 2], [3, 3]]
    assert merged.finished.tolist() == [[True, True], [False, False]]
    assert merged.log_probs.tolist() == [[[-1, -1, 0]] * 2, [[-2, -2, -2]] * 2]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"sampling": Sampling(group_size=1)}, "group_size=1"),
        ({"sampling": Sampling(temperature=0.0)}, "temperature=0"),
        ({"updates_per_rollout": 0}, "updates_per_rollout=0"),
        ({"resample_zero_variance": -1}, "resample_zero_variance=-1"),
    ],
)
def test_settings_that_cannot_train_are_errors(source, settings, named):
    with pytest.raises(ValueError, match=named):
        GRPOModule(policy=source, **settings)
