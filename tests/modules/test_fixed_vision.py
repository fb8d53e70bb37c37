"""A vision tower that is not trained runs once for each batch of a step, and nothing else changes.

Compared with the same training in which every forward runs the tower.
"""

import weakref
import zlib
from dataclasses import replace
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from tests.policy.tiny_models import write_tiny
from tests.strategies import runs
from vr1.data import SceneDataModule, SceneStyle
from vr1.losses import GRPO
from vr1.modules.grpo import GRPOModule
from vr1.policy import Lora, Policy, PolicySource
from vr1.rewards import Reward, RewardTerm
from vr1.rollout import Sampling, SharedPrefixSampler

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
LORA = {"lora": Lora(rank=2)}
FROZEN = {"freeze_vision": True}


class Hash(RewardTerm):
    """A reward that an untrained model earns differently by every completion, of few values."""

    def __init__(self, values=13):
        super().__init__()
        self.values = values

    def score(self, match, criterion):
        return zlib.crc32(match.detections.completion.encode()) % self.values / self.values


class Counted(GRPOModule):
    """Notes who runs the vision tower, and in which mode."""

    def configure_model(self):
        super().configure_model()
        self.runs = []
        copies = self.reference.policies() if self.reference else []
        for name, policy in (("policy", self.policy), *(("copy", copy) for copy in copies)):
            tower = next(part for part in policy.modules() if isinstance(part, nn.Conv2d | nn.Conv3d))
            tower.register_forward_hook(lambda *_, name=name: self.runs.append(name))


class Steps(Callback):
    """What every batch came to, and the features that still exist after it."""

    def __init__(self):
        self.rows, self.alive, self._features = [], [], []

    def on_train_batch_end(self, trainer, module, *_):
        names = ("grpo", "reward")
        self.rows.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(names)})
        self.alive.append(sum(feature() is not None for feature in self._features))

    def note(self, features):
        self._features += map(weakref.ref, features)


def build(source, values=13, kind=Counted, **settings):
    return kind(
        policy=source,
        reward=Reward(terms={"hash": Hash(values)}),
        sampling=Sampling(group_size=2, max_new_tokens=5),
        optimizer=partial(torch.optim.AdamW, lr=1e-2, eps=1e-3),
        loss=settings.pop("loss", None) or GRPO(kl_coef=0.1),
        seed=2,
        **settings,
    )


def fit(module, folder, steps=2, **settings):
    pl.seed_everything(1)
    watch = Steps()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=folder,
        callbacks=[watch],
        **settings,
    )
    data = SceneDataModule(SceneStyle(), train_scenes=16, val_scenes=2, batch_size=2, num_workers=0, seed=3)
    trainer.fit(module, data)
    return watch


def every_forward_runs_the_tower(monkeypatch):
    monkeypatch.setattr(Policy, "has_fixed_vision", False)


def assert_same(ours, theirs, exact=True):
    tolerance = {"atol": 0.0, "rtol": 0.0} if exact else {"atol": 1e-6, "rtol": 1e-5}
    for name, value in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), value, msg=name, **tolerance)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            write_tiny(kind, made[kind])
        return made[kind]

    return folder


@pytest.mark.parametrize("changes", [LORA, FROZEN], ids=["lora", "copy"])
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "internvl", "griffon_g"])
def test_the_tower_runs_once_a_step_and_nothing_changes(source, folders, tmp_path, monkeypatch, kind, changes):
    if kind != "qwen2_5_vl":
        source = PolicySource(path=str(folders(kind)))
    source = replace(source, **changes)
    once = build(source)
    steps = fit(once, tmp_path)
    assert once.runs == ["policy"] * 2
    every_forward_runs_the_tower(monkeypatch)
    often = build(source)
    reference = fit(often, tmp_path)
    assert often.runs == ["policy", "policy" if changes is LORA else "copy"] * 2
    assert steps.rows == reference.rows
    assert any(row["grpo/kl"] > 0 for row in steps.rows), "the second step is away from the reference"
    assert_same(once, often)


@pytest.mark.parametrize(
    ("changes", "settings", "trainer", "once", "often"),
    [
        # Two rollouts in each of which four batches are read together, then each by the reference and by the policy.
        (LORA, {}, {"accumulate_grad_batches": 4}, 8, 2 + 8 + 8),
        (FROZEN, {}, {"accumulate_grad_batches": 4}, 8, 2 + 8 + 8),
        (LORA, {"updates_per_rollout": 2}, {}, 1, 3),
        (FROZEN, {"updates_per_rollout": 2}, {"accumulate_grad_batches": 2}, 2, 1 + 2 + 4),
        (LORA, {"loss": GRPO(kl_coef=0.0)}, {"accumulate_grad_batches": 2}, 4, 2 + 4),
        (LORA, {"loss": GRPO(kl_coef=0.0)}, {}, 2, 2),
        (LORA | {"gradient_checkpointing": True}, {}, {}, 2, 4),
        (FROZEN, {}, {"precision": "bf16-mixed"}, 2, 4),
        (LORA | {"dtype": "bfloat16"}, {}, {"precision": "bf16-mixed"}, 2, 4),
        # With dropout of adapters, the training pass cannot use the rollout's forward.
        ({"lora": Lora(rank=2, dropout=0.1)}, {}, {}, 2, 6),
        # Zero-variance groups are resampled, of a part of the prompts; at most one group is decoded at a time.
        (
            FROZEN,
            {"values": 2, "resample_zero_variance": 2, "sampler": SharedPrefixSampler(max_rows=2)},
            {"accumulate_grad_batches": 2},
            4,
            None,
        ),
        ({**LORA, "quantize": "nf4"}, {}, {}, 2, 4),
    ],
    ids=[
        *("accumulated", "accumulated, copy", "two updates", "two updates, accumulated", "no reference, accumulated"),
        *("no reference", "recomputed", "bf16-mixed", "bfloat16", "dropout of adapters", "resampled in parts"),
        "4 bits",
    ],
)
def test_in_every_setting(source, tmp_path, monkeypatch, changes, settings, trainer, once, often):
    if "quantize" in changes:
        pytest.importorskip("bitsandbytes")
    source = replace(source, **changes)
    shared = build(source, **settings)
    steps = fit(shared, tmp_path, **trainer)
    assert shared.runs == ["policy"] * once
    every_forward_runs_the_tower(monkeypatch)
    apart = build(source, **settings)
    reference = fit(apart, tmp_path, **trainer)
    assert len(apart.runs) == often if often else len(apart.runs) > 2 * once
    for ours, theirs in zip(steps.rows, reference.rows, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
    assert_same(shared, apart, exact=False)


def test_a_tower_that_is_trained_runs_in_every_forward(source, prompts, tmp_path):
    module = build(source)
    fit(module, tmp_path, accumulate_grad_batches=2)
    assert module.runs == [*["policy"], *["copy", "policy"] * 2] * 2
    assert module.policy.with_image_features(prompts) is prompts


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda base: base.model.visual.merger.mlp[0].bias.requires_grad_(True), id="a trained bias"),
        pytest.param(lambda base: base.model.visual.register_module("drop", nn.Dropout(0.1)), id="dropout"),
        pytest.param(lambda base: setattr(base.config.vision_config, "attention_dropout", 0.1), id="of attention"),
    ],
)
def test_features_that_may_differ_are_not_fixed(source, prompts, change):
    policy = replace(source, freeze_vision=True).load()
    assert policy.has_fixed_vision
    change(policy.base)
    assert not policy.has_fixed_vision
    assert policy.with_image_features(prompts) is prompts


def test_models_that_do_not_share_prompts_are_left_alone(source, prompts):
    policy = replace(source, freeze_vision=True, share_prompt=False).load()
    assert not policy.has_fixed_vision
    assert policy.with_image_features(prompts) is prompts


@pytest.mark.parametrize(
    ("updates", "alive"), [(1, [6, 4, 2, 0] * 2), (2, [8, 8, 8, 8, 6, 4, 2, 0])], ids=["one update", "two updates"]
)
def test_features_exist_until_their_last_use(source, tmp_path, monkeypatch, updates, alive):
    """Of four batches of two images each, those of a batch are gone after the last update on it."""
    watches, original = [], Policy.with_image_features

    def noted(policy, prompts):
        made = original(policy, prompts)
        watches[0].note(made.image_features)
        assert not any(feature.is_inference() or feature.requires_grad for feature in made.image_features)
        return made

    monkeypatch.setattr(Policy, "with_image_features", noted)
    monkeypatch.setattr(Steps, "__init__", lambda self, init=Steps.__init__: (init(self), watches.append(self))[0])
    steps = fit(build(replace(source, **FROZEN), updates_per_rollout=updates), tmp_path, accumulate_grad_batches=4)
    assert steps.alive == alive


def test_features_are_those_of_the_same_prompts_in_every_selection(source, encoder, records):
    from vr1.rollout.batching import join_prompts, select_prompts

    policy = replace(source, **FROZEN).load()
    first, second = (policy.with_image_features(encoder(part)) for part in (records[:1], records[1:]))
    [(joined, sizes)] = join_prompts([first, second])
    assert sizes == [1, 2]
    assert all(ours is theirs for ours, theirs in zip(joined.image_features, first.image_features, strict=False))
    assert len(joined.image_features) == 3
    [last, one] = select_prompts(joined, [2, 0]).image_features
    assert last is second.image_features[1]
    assert one is first.image_features[0]
    # Prompts with features and prompts without are not one batch.
    assert len(join_prompts([first, encoder(records[1:])])) == 2
    again = policy.image_features(encoder(records))
    for ours, theirs in zip(joined.image_features, again, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def on_two(source, out):
    for name, changes in (("lora", LORA), ("copy", FROZEN)):
        made = runs.module(replace(source, **changes), kind=Counted, loss=GRPO(kl_coef=0.1))
        runs.train(made, out / name, steps=2, accumulate_grad_batches=2, **runs.two())
        torch.save(made.runs, out / name / f"runs{made.global_rank}")


def test_shards_of_a_tower_are_gathered_for_the_rollout_alone(source, tmp_path):
    """Two processes, each with a part of every weight, against one."""
    runs.start_two(source, tmp_path, on_two)
    for name, changes in (("lora", LORA), ("copy", FROZEN)):
        assert [torch.load(tmp_path / name / f"runs{rank}") for rank in (0, 1)] == [["policy"] * 4] * 2
        one = runs.module(replace(source, **changes), kind=Counted, loss=GRPO(kl_coef=0.1))
        runs.train(one, tmp_path / "one", steps=2, accumulate_grad_batches=2)
        for ours, theirs in zip(runs.rows(tmp_path / name), runs.rows(tmp_path / "one"), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
