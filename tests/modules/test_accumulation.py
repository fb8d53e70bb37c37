"""With accumulated gradients, completions of all batches of an optimizer step are sampled together.

Compared with a module whose batches do not carry each other, so that each is sampled by itself.
"""

import weakref
import zlib
from dataclasses import replace
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, GradientAccumulationScheduler

from tests.processes import two_ranks
from vr1.data import SceneDataModule, SceneStyle
from vr1.losses import GRPO
from vr1.modules.grpo import GRPOModule
from vr1.policy import Lora, PolicySource
from vr1.rewards import Reward, RewardTerm
from vr1.rollout import Sampling, SharedPrefixSampler

pytestmark = [
    pytest.mark.filterwarnings("error:You're resuming from a checkpoint"),
    pytest.mark.filterwarnings("ignore:The .*_dataloader' does not have many workers"),
]
GROUP = 2


class Hash(RewardTerm):
    """A reward that an untrained model earns differently by every completion, of few values."""

    def __init__(self, values=13):
        super().__init__()
        self.values = values

    def score(self, match, criterion):
        return zlib.crc32(match.detections.completion.encode()) % self.values / self.values


class Counted(SharedPrefixSampler):
    """Notes how many prompts each call is about, and the prefixes that it makes, as long as they exist."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.calls, self.prefixes = [], []

    def sample(self, policy, prompts, *arguments):
        rollout = super().sample(policy, prompts, *arguments)
        self.calls.append(len(prompts))
        self.prefixes += [] if rollout.prefix is None else [weakref.ref(rollout.prefix.keys[0])]
        return rollout


class Apart(GRPOModule):
    """Samples each batch by itself."""

    samples_whole_steps = False


class Diary(Callback):
    """What every batch came to."""

    def __init__(self):
        self.rows, self.steps, self.tokens, self.records, self.texts, self.rewards = [], [], [], [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        position = batch_idx % trainer.accumulate_grad_batches
        rollout = module.training_state.rollout_batches[position]
        names = ("reward", "grpo", "step")
        self.rows.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(names)})
        self.tokens.append(
            [
                [row[kept].tolist() for row, kept in zip(*group, strict=True)]
                for group in zip(rollout.tokens, rollout.mask, strict=True)
            ]
        )
        self.steps.append(trainer.global_step)
        self.records.append([record.image_id for record in batch.records])
        scored = module.training_state.scored_groups
        # A run that resumes between the updates from a rollout has none yet.
        self.texts.append(None if scored is None else scored.texts)
        self.rewards.append(None if scored is None else scored.rewards.flatten().tolist())

    def ends(self):
        """What callbacks read at the end of each optimizer step."""
        return [row for row, step in zip(self.rows, self.steps, strict=True) if row["step"] == step]


class SaveWithinStep(Checkpoint):
    """Saves after the batch of a number, in the hook of the ``batch`` or of the ``validation``."""

    def __init__(self, path, number, hook):
        self.path, self.number, self.hook, self.batches = path, number, hook, 0

    def _save(self, trainer, hook):
        if hook == self.hook and self.batches == self.number and not self.path.exists():
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(self, trainer, *_):
        self.batches += 1
        self._save(trainer, "batch")

    def on_validation_end(self, trainer, *_):
        self._save(trainer, "validation")


def build(source, kind=GRPOModule, values=13, **settings):
    return kind(
        policy=source,
        reward=Reward(terms={"hash": Hash(values)}),
        sampling=Sampling(group_size=GROUP, max_new_tokens=5),
        evaluation=Sampling(group_size=1, temperature=0.0, max_new_tokens=4),
        sampler=settings.pop("sampler", None) or Counted(),
        optimizer=partial(torch.optim.AdamW, lr=1e-2, eps=1e-3),
        seed=2,
        **settings,
    )


def fit(module, folder, steps, accumulate=4, *, batch_size=1, scenes=13, ckpt_path=None, callbacks=(), **settings):
    pl.seed_everything(1)
    diary = Diary()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=[diary, *callbacks],
        **{"devices": 1, "limit_val_batches": 0, "accumulate_grad_batches": accumulate} | settings,
    )
    data = SceneDataModule(
        SceneStyle(), train_scenes=scenes, val_scenes=2, batch_size=batch_size, num_workers=0, seed=3
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return diary


def weights(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def assert_alike(one, two, atol=1e-5):
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, atol=atol, rtol=0, msg=name)


def assert_rows_alike(one, two):
    assert len(one) == len(two) > 0
    for first, second in zip(one, two, strict=True):
        assert first == pytest.approx(second, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{}, {"updates_per_rollout": 2}, {"loss": GRPO(kl_coef=0.0)}, {"resample_zero_variance": 2, "values": 2}],
    ids=["reference", "two updates", "no reference", "resampled"],
)
def test_a_step_is_sampled_in_one_call_with_the_same_tokens(source, tmp_path, settings):
    together, apart = build(source, **settings), build(source, Apart, **settings)
    # Two rollouts, the second of weights that have changed.
    steps = 2 * settings.get("updates_per_rollout", 1)
    ours, theirs = fit(together, tmp_path, steps), fit(apart, tmp_path, steps)
    assert ours.tokens == theirs.tokens
    assert ours.texts == theirs.texts
    assert ours.records == theirs.records
    assert_rows_alike(ours.rows, theirs.rows)
    assert_alike(together, apart)
    first_attempts = 2
    if "resample_zero_variance" not in settings:
        assert together.sampler.calls == [4] * first_attempts
        assert apart.sampler.calls == [1] * 4 * first_attempts
    else:
        # Of a step that is sampled together, only groups of equal rewards are sampled again, and together.
        assert together.sampler.calls.count(4) >= first_attempts
        assert first_attempts < len(together.sampler.calls) <= 3 * first_attempts
        assert sum(together.sampler.calls) == sum(apart.sampler.calls)
        assert len(together.sampler.calls) < len(apart.sampler.calls)


@pytest.fixture(scope="module")
def tokens_of_a_step(tiny_model, tmp_path_factory):
    """Of all rows at once."""
    return fit(
        build(PolicySource(path=str(tiny_model)), loss=GRPO(kl_coef=0.0)), tmp_path_factory.mktemp("step"), 1
    ).tokens


@pytest.mark.parametrize(("max_rows", "forwards"), [("auto", 1), (8, 1), (7, 2), (2, 4), (1, 4)])
def test_fewer_rows_at_once_change_nothing(source, tmp_path, monkeypatch, tokens_of_a_step, max_rows, forwards):
    from vr1.policy import Policy

    read, original = [], Policy.prefill

    def prefill(policy, prompts):
        if not torch.is_grad_enabled():
            read.append(len(prompts))
        return original(policy, prompts)

    monkeypatch.setattr(Policy, "prefill", prefill)
    module = build(source, sampler=Counted(max_rows=max_rows), loss=GRPO(kl_coef=0.0))
    diary = fit(module, tmp_path, 1)
    assert diary.tokens == tokens_of_a_step
    assert module.sampler.calls == [4]
    assert len(read) == forwards
    assert sum(read) == 4
    assert max(read) - min(read) <= 1


@pytest.mark.parametrize("max_rows", [0, -3])
def test_less_than_one_row_is_refused(max_rows):
    with pytest.raises(ValueError, match=f"max_rows={max_rows} must be at least 1, or auto"):
        SharedPrefixSampler(max_rows=max_rows)


def test_keys_and_values_of_later_batches_are_not_kept(source, tmp_path):
    alive = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            alive.append([ref() is not None for ref in module.sampler.prefixes])

    fit(build(source), tmp_path, 2, callbacks=[Watch()])
    assert [len(flags) for flags in alive] == [1] * 4 + [2] * 4
    assert not any(flag for flags in alive for flag in flags)


def test_the_last_step_of_an_epoch_that_is_cut_short_is_sampled_as_far_as_it_goes(source, tmp_path):
    module = build(source)
    diary = fit(module, tmp_path, 4, accumulate=2, limit_train_batches=3)
    assert module.sampler.calls == [2, 1, 2, 1]
    apart = build(source, Apart)
    assert diary.tokens == fit(apart, tmp_path, 4, accumulate=2, limit_train_batches=3).tokens
    assert_alike(module, apart)


def test_figures_of_a_step_are_those_of_all_its_batches(source, tmp_path):
    """As of one batch of the same prompts; completions differ in length, so that tokens are not weighted alike."""
    apart = fit(build(source), tmp_path, 3, 4)
    lengths = [sum(len(row) for group in batch for row in group) for batch in apart.tokens]
    assert len(set(lengths[:4])) > 1
    together = fit(build(source), tmp_path, 3, 1, batch_size=4).ends()
    assert {"grpo/kl", "grpo/sampler_gap_max", "grpo/entropy", "reward/total", "reward/hash"} <= together[0].keys()
    assert_rows_alike(apart.ends(), together)


def test_figures_of_a_step_that_is_cut_short(source, tmp_path):
    """Two batches, then one, in each epoch."""
    diary = fit(build(source), tmp_path, 4, accumulate=2, limit_train_batches=3)
    assert diary.steps == [0, 1, 2, 2, 3, 4]
    one, two, three, four, five, six = map(torch.tensor, diary.rewards)
    expected = [torch.cat([one, two]).mean(), three.mean(), torch.cat([four, five]).mean(), six.mean()]
    found = [row["reward/total"] for row in diary.ends()]
    assert found == pytest.approx([float(value) for value in expected])


@pytest.mark.parametrize("updates", [1, 2])
def test_a_schedule_of_the_accumulation(source, tmp_path, updates):
    """One batch a step in the first epoch, then two, then four; each step's records come as often as they should."""

    def run(kind, steps, **settings):
        module = build(source, kind, updates_per_rollout=updates)
        schedule = GradientAccumulationScheduler({0: 1, 1: 2, 2: 4})
        saving = settings.pop("callbacks", [])
        return module, fit(module, tmp_path, steps, 1, scenes=5, callbacks=[schedule, *saving], **settings)

    # Four records an epoch: four steps, two, one; each is repeated.
    stop, file = 4 * updates + 3, tmp_path / "at.ckpt"
    module, diary = run(GRPOModule, 7 * updates, callbacks=[SaveWithinStep(file, stop, "batch")])
    assert module.sampler.calls == [1] * 4 + [2] * 2 + [4]
    assert len(diary.records) == 12 * updates
    sizes = iter([1] * 4 + [2] * 2 + [4])
    rows = iter(diary.records)
    for size in sizes:
        first, *others = [[next(rows) for _ in range(size)] for _ in range(updates)]
        assert all(other == first for other in others)
    apart, expected = run(Apart, 7 * updates)
    assert diary.tokens == expected.tokens
    assert_alike(module, apart)
    # Resumed within the second epoch and within a step of it.
    resumed, rest = run(GRPOModule, 7 * updates, ckpt_path=file)
    assert rest.records == diary.records[stop:]
    assert rest.tokens == diary.tokens[stop:]
    assert_alike(resumed, module, atol=0)


@pytest.mark.parametrize(
    ("updates", "number", "hook", "dropout", "steps"),
    [
        (1, 1, "batch", 0.0, 2),
        (1, 3, "validation", 0.2, 2),
        (1, 7, "batch", 0.0, 3),
        (1, 10, "validation", 0.0, 4),
        (2, 2, "validation", 0.0, 3),
        (2, 5, "batch", 0.2, 3),
        (2, 11, "batch", 0.0, 4),
    ],
)
def test_a_run_resumes_within_a_step(source, tmp_path, updates, number, hook, dropout, steps):
    """To the last bit, with validations between its batches, and with dropout; a step of four batches follows."""

    def run(**settings):
        module = build(replace(source, lora=Lora(rank=2, dropout=dropout)), updates_per_rollout=updates)
        validated = {"limit_val_batches": 1, "val_check_interval": 1} if hook == "validation" else {}
        return module, fit(module, tmp_path, steps, **validated, **settings)

    file = tmp_path / "at.ckpt"
    whole, diary = run(callbacks=[SaveWithinStep(file, number, hook)])
    resumed, rest = run(ckpt_path=file)
    assert rest.records == diary.records[number:]
    assert rest.tokens == diary.tokens[number:]
    for now, then in zip(rest.rows, diary.rows[number:], strict=True):
        # The sampler computes its log-probs again, of fewer prompts at once; and a resumed run has not logged yet what
        # is logged once a rollout.
        assert now == pytest.approx({name: then[name] for name in now}, abs=1e-5)
        exact = [name for name in now if "sampler_gap" not in name]
        assert [now[name] for name in exact] == [then[name] for name in exact]
    assert_alike(resumed, whole, atol=0)


def test_a_checkpoint_within_a_step_requires_its_gradients(source, tmp_path):
    file = tmp_path / "at.ckpt"
    fit(build(source), tmp_path, 2, callbacks=[SaveWithinStep(file, 5, "batch")])
    checkpoint = torch.load(file, weights_only=True)
    assert checkpoint.pop("vr1_gradients")
    torch.save(checkpoint, file)
    with pytest.raises(ValueError, match=r"in the middle of an optimizer step, .*: resume from an earlier one"):
        fit(build(source), tmp_path, 2, ckpt_path=file)


def test_a_checkpoint_between_steps_has_no_gradients(source, tmp_path):
    fit(build(source), tmp_path, 2, callbacks=[SaveWithinStep(tmp_path / "at.ckpt", 4, "batch")])
    assert "vr1_gradients" not in torch.load(tmp_path / "at.ckpt", weights_only=True)


def test_other_accumulation_within_a_step_is_refused(source, tmp_path):
    file = tmp_path / "at.ckpt"
    fit(build(source), tmp_path, 2, callbacks=[SaveWithinStep(file, 5, "batch")])
    with pytest.raises(ValueError, match=r"of an optimizer step of 4 batches, and now a step has 2: set trainer.acc"):
        fit(build(source), tmp_path, 2, 2, batch_size=2, ckpt_path=file)


class OnTwo(Callback):
    """Writes what a process has sampled, with its weights at the end."""

    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, module):
        [diary] = [callback for callback in trainer.callbacks if isinstance(callback, Diary)]
        found = {"tokens": diary.tokens, "calls": module.sampler.calls, "weights": weights(module)}
        found["ends"] = diary.ends()
        torch.save(found, f"{self.path}.{trainer.global_rank}")


def test_two_processes(source, tmp_path):
    alone = build(source)
    diary = fit(alone, tmp_path, 3, batch_size=2)
    file = tmp_path / "at.ckpt"
    saving = [OnTwo(tmp_path / "whole"), SaveWithinStep(file, 6, "batch")]
    fit(build(source), tmp_path, 3, callbacks=saving, **two_ranks())
    fit(build(source), tmp_path, 3, callbacks=[OnTwo(tmp_path / "resumed")], ckpt_path=file, **two_ranks())
    for rank in (0, 1):
        whole = torch.load(f"{tmp_path}/whole.{rank}")
        assert whole["calls"] == [4] * 3
        assert whole["tokens"] == [[batch[rank]] for batch in diary.tokens]
        for name, value in weights(alone).items():
            torch.testing.assert_close(whole["weights"][name], value, atol=1e-4, rtol=0, msg=name)
        assert_rows_alike(whole["ends"], diary.ends())
        resumed = torch.load(f"{tmp_path}/resumed.{rank}")
        assert resumed["calls"] == [2, 4]
        assert resumed["tokens"] == whole["tokens"][6:]
        assert_rows_alike(resumed["ends"], whole["ends"][1:])
        for name, value in whole["weights"].items():
            torch.testing.assert_close(resumed["weights"][name], value, atol=1e-5, rtol=0, msg=name)
