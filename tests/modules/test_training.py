"""What a training must hold to, whatever it is made of: seen from a Trainer, by rewards, logs and weights."""

import statistics
import zlib
from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.trainers import trainer
from vr1.advantage import AdvantageEstimator, Advantages
from vr1.data import SceneDataModule, SceneStyle
from vr1.losses import GRPO
from vr1.modules.figures import StepFigures
from vr1.modules.grpo import GRPOModule
from vr1.modules.sft import SFTModule
from vr1.policy import Lora
from vr1.rewards import Reward, RewardTerm
from vr1.rollout import Sampling, generate


class Checksum(RewardTerm):
    """A reward that an untrained model earns differently by every completion."""

    def score(self, match, criterion):
        return zlib.crc32(match.detections.completion.encode()) % 13 / 13


def build(source, term=None, lr=0.1, temperature=1.0, group_size=3, **settings):
    return GRPOModule(
        policy=source,
        reward=Reward(terms={"scripted": term or Checksum()}),
        sampling=Sampling(group_size=group_size, temperature=temperature, max_new_tokens=6),
        optimizer=partial(torch.optim.SGD, lr=lr),
        seed=3,
        **settings,
    )


def fit(module, folder, *callbacks, batch_size=2, scenes=4, steps=2, **settings):
    run = trainer(folder, callbacks, **({"max_steps": steps, "max_epochs": -1} | settings))
    data = SceneDataModule(
        SceneStyle(), train_scenes=scenes, val_scenes=2, batch_size=batch_size, num_workers=0, seed=3
    )
    run.fit(module, data)
    return run


class Logged(Callback):
    """What callbacks can read after every batch."""

    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, module, *_):
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def weights(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def update(module, source):
    """How far all weights have come from the source's, as one vector."""
    start = source.load().state_dict()
    moved = [value - start[name.removeprefix("policy.")] for name, value in weights(module).items()]
    return torch.cat([change.flatten() for change in moved])


def supervised(source):
    return SFTModule(policy=source, optimizer=partial(torch.optim.SGD, lr=0.1))


# SFT averages over tokens: batches with answers of unlike length make nearly the same step.
@pytest.mark.parametrize(("kind", "tolerance"), [(build, 1e-4), (supervised, 0.4)], ids=["grpo", "sft"])
def test_two_batches_of_two_are_one_of_four(source, tmp_path, kind, tolerance):
    apart, together = kind(source), kind(source)
    fit(apart, tmp_path, batch_size=2, accumulate_grad_batches=2, scenes=8)
    fit(together, tmp_path, batch_size=4, scenes=8)
    one, other = update(apart, source), update(together, source)
    assert float(other.norm()) > 0.1
    assert float((one - other).norm()) < tolerance * float(other.norm())


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["copy", "adapters_off"])
def test_training_begins_at_its_reference(source, tmp_path, temperature, lora):
    module, logged = build(replace(source, lora=lora), temperature=temperature, loss=GRPO(kl_coef=0.2)), Logged()
    fit(module, tmp_path, logged, steps=2)
    first, second = logged.rows
    assert first["grpo/kl"] == pytest.approx(0, abs=1e-7)
    assert first["grpo/ratio"] == pytest.approx(1, abs=1e-6)
    assert first["grpo/clip_fraction"] == 0
    assert lora or second["grpo/kl"] > 1e-4


@pytest.mark.parametrize("temperature", [0.3, 0.5])
def test_log_probs_are_those_of_the_distribution_sampled_from(source, prompts, temperature):
    """Of a policy that samples much, the tokens' mean log-prob is minus their mean entropy, at one temperature only."""
    policy = source.load().eval()
    tokenizer = source.processor().tokenizer
    rollout = generate(policy, prompts, Sampling(group_size=64, temperature=temperature, max_new_tokens=4), tokenizer)
    values, entropy = policy.log_probs(prompts, rollout.tokens, rollout.mask, temperature)
    assert float(values[rollout.mask].mean()) == pytest.approx(-float(entropy[rollout.mask].mean()), rel=0.03)
    other, _ = policy.log_probs(prompts, rollout.tokens, rollout.mask)
    assert float(other[rollout.mask].mean()) != pytest.approx(-float(entropy[rollout.mask].mean()), rel=0.03)


class Collects(RewardTerm):
    """Equal for every completion, and remembers them all, in their order."""

    def __init__(self):
        super().__init__()
        self.completions = []

    def score(self, match, criterion):
        self.completions.append(match.detections.completion)
        return 0.5


def test_no_step_attempt_or_record_repeats_the_draws_of_another(source, tmp_path):
    """With weights that stay as they are, completions are alike only where random numbers are."""
    term = Collects()
    fit(build(source, term, lr=0.0, resample_zero_variance=2), tmp_path, scenes=2, steps=4)
    groups = [tuple(term.completions[at : at + 3]) for at in range(0, len(term.completions), 3)]
    assert len(groups) == 4 * 3 * 2
    assert len({*groups}) == len(groups)
    assert len({*term.completions}) > 0.9 * len(term.completions)


class Scripted(RewardTerm):
    """Differs within the first prompt's group at once, and within the second's from the second attempt on."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def score(self, match, criterion):
        number = len(self.calls)
        attempt, prompt, place = number // 6, number // 3 % 2, number % 3
        value = place / 3 + attempt / 10 if prompt == 0 or attempt > 0 else 0.25
        self.calls.append((match.detections.completion, value))
        return value


def test_resampling_replaces_the_groups_without_a_signal_alone(source, tmp_path):
    term = Scripted()
    module = build(source, term, lr=0.0, resample_zero_variance=2)
    fit(module, tmp_path, steps=1)
    assert len(term.calls) == 9, "the second is sampled once more, and not again when all groups had a signal"
    expected = [term.calls[0:3], term.calls[6:9]]
    scored = module.training_state.scored_groups
    assert scored.texts == [[text for text, _ in group] for group in expected]
    values = torch.tensor([[value for _, value in group] for group in expected])
    torch.testing.assert_close(scored.rewards, values)
    torch.testing.assert_close(scored.terms["scripted"], values)
    assert (scored.advantages.std(dim=1) > 0.5).all()
    batch = module.training_state.rollout_batches[0]
    tokenizer = module.processor.tokenizer
    for tokens, mask, texts in zip(batch.tokens, batch.mask, scored.texts, strict=True):
        rows = [row[kept] for row, kept in zip(tokens, mask, strict=True)]
        assert tokenizer.batch_decode(rows, skip_special_tokens=True) == texts
    torch.testing.assert_close(batch.advantages, scored.advantages)


def test_several_terms_are_weighted_and_resampled_together(source, tmp_path):
    module = build(source, lr=0.0, resample_zero_variance=1)
    module.reward = Reward(terms={"first": Scripted(), "second": Scripted()}, weights={"second": -0.5})
    fit(module, tmp_path, steps=1)
    scored = module.training_state.scored_groups
    torch.testing.assert_close(scored.rewards, scored.terms["first"] - 0.5 * scored.terms["second"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_are_logged_by_the_number_that_is_finished_with_them(source, tmp_path, accumulate):
    logged = Logged()
    fit(build(source), tmp_path, logged, steps=3, scenes=4, batch_size=1, accumulate_grad_batches=accumulate)
    steps = [row["step"] for row in logged.rows]
    assert steps == [number // accumulate + 1 for number in range(3 * accumulate)]


def test_lengths_are_logged_per_completion_and_deviations_per_group(source, tmp_path):
    module, logged = build(source), Logged()
    fit(module, tmp_path, logged, steps=1)
    [row] = logged.rows
    mask, scored = module.training_state.rollout_batches[0].mask, module.training_state.scored_groups
    assert mask.shape[:2] == (2, 3)
    lengths = [int(completion.sum()) for group in mask for completion in group]
    assert row["grpo/completion_tokens"] == pytest.approx(sum(lengths) / 6)
    deviations = [statistics.stdev(group) for group in scored.rewards.tolist()]
    assert deviations[0] != pytest.approx(deviations[1])
    assert row["grpo/reward_std"] == pytest.approx(sum(deviations) / 2)


class Uncentred(AdvantageEstimator):
    """The rewards themselves, with which the loss is not 0 on policy."""

    def __call__(self, groups):
        return Advantages(answers=groups.total)


class Shared(GRPOModule):
    """As with another process of three times as many completions."""

    def share_of(self, count):
        mask = self.training_state.rollout_batches[0].mask
        assert mask.any(-1).sum() != mask.sum()
        return torch.tensor(1 / 2 if count == mask.any(-1).sum() else float("nan"))


class Weighted(StepFigures):
    """Notes what each figure is weighted by."""

    def __init__(self):
        super().__init__()
        self.weights = {}

    def add(self, group, values, weight=1.0):
        super().add(group, values, weight)
        self.weights |= {f"{group}/{name}": float(weight) for name in values}


def test_loss_is_weighed_by_completions_and_figures_by_tokens(source, tmp_path):
    """The share of a process in the mean of all is 1 of (1 + 3) / 2."""
    rows, modules = [], []
    for kind in (GRPOModule, Shared):
        module, logged = build(source, advantage=Uncentred()), Logged()
        module.__class__, module.step_figures = kind, Weighted()
        fit(module, tmp_path, logged, steps=1)
        rows += logged.rows
        modules.append(module)
    alone, shared = rows
    assert abs(alone["grpo/loss"]) > 1e-3
    assert shared["grpo/loss"] == pytest.approx(alone["grpo/loss"] / 2)
    tokens = int(modules[0].training_state.rollout_batches[0].mask.sum())
    for name in ("entropy", "ratio", "clip_fraction", "kl", "sampler_gap"):
        assert modules[0].step_figures.weights[f"grpo/{name}"] == tokens, name
    for name in ("reward/total", "reward/scripted", "grpo/reward_std", "grpo/completion_tokens"):
        assert modules[0].step_figures.weights[name] == 2, name


def test_an_entropy_bonus_keeps_the_entropy_up(source, tmp_path):
    """The same rewards and tokens in the first step; after some steps the distributions are wider."""
    entropies = []
    for coefficient in (0.0, 1.0):
        logged = Logged()
        fit(build(source, loss=GRPO(kl_coef=0.0, entropy_coef=coefficient)), tmp_path, logged, steps=4)
        entropies.append([row["grpo/entropy"] for row in logged.rows])
    without, bonus = entropies
    assert bonus[0] == pytest.approx(without[0])
    assert bonus[-1] > without[-1] + 1e-3


def test_two_modules_of_one_process_have_states_of_their_own(source, tmp_path):
    first, second = build(source), build(source)
    fit(first, tmp_path, steps=1)
    assert first.training_state.timer.tokens > 0
    assert first.training_state.timer.seconds["rollout"] > 0
    untouched = second.training_state
    assert (untouched.timer.tokens, dict(untouched.timer.seconds)) == (0, {})
    assert (untouched.rollout_batches, untouched.scored_groups) == ({}, None)


class Modes(Callback):
    """Whether layers of the language model run as training does, for every forward of a step."""

    def __init__(self):
        self.of_policy, self.of_reference = [], []

    def on_train_start(self, trainer, module):
        def watch(network, seen):
            layer = network.base.model.language_model.layers[0]
            layer.register_forward_hook(lambda part, *_: seen.append((part.training, torch.is_grad_enabled())))

        watch(module.policy, self.of_policy)
        [self.reference] = module.reference.policies()
        watch(self.reference, self.of_reference)


def test_prompts_of_a_rollout_are_read_as_training_reads_them_and_the_reference_never_is(source, tmp_path):
    """In training mode activations are recomputed: outside of it, the graph of the prompts would be kept."""
    modes = Modes()
    module = build(replace(source, gradient_checkpointing=True), loss=GRPO(kl_coef=0.1))
    fit(module, tmp_path, modes, steps=2)
    assert modes.of_policy
    assert all(training for training, has_graph in modes.of_policy if has_graph)
    assert modes.of_reference == [(False, False)] * len(modes.of_reference) != []
    assert not any(part.training for part in modes.reference.modules())
    assert module.policy.training


def test_gradients_are_gone_between_steps_and_whole_before(source, tmp_path):
    seen = []

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            seen.append(("step", all(parameter.grad is not None for parameter in module.parameters())))

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            seen.append(("batch", [parameter.grad is not None for parameter in module.parameters()]))

    fit(build(source), tmp_path, Watch(), steps=2, batch_size=1, accumulate_grad_batches=2)
    kinds = [kind for kind, _ in seen]
    assert kinds == ["batch", "batch", "step"] * 2
    assert not any(seen[0][1])
    assert all(seen[1][1])
    assert seen[2][1]
    assert not any(seen[3][1])


@pytest.mark.parametrize("kind", [build, supervised], ids=["grpo", "sft"])
@pytest.mark.parametrize("clip", [None, 0.01])
def test_the_norm_of_the_gradient_is_logged_before_it_is_clipped(source, tmp_path, kind, clip):
    """Plain gradient descent at a rate of 0.1 moves the weights by a tenth of the gradient that it gets."""
    module, logged, unclipped = kind(source), Logged(), Logged()
    fit(module, tmp_path, logged, steps=1, batch_size=2, accumulate_grad_batches=2, gradient_clip_val=clip)
    fit(kind(source), tmp_path, unclipped, steps=1, batch_size=2, accumulate_grad_batches=2)
    norm = logged.rows[-1][f"{module.objective}/grad_norm"]
    assert norm == pytest.approx(unclipped.rows[-1][f"{module.objective}/grad_norm"], rel=1e-6)
    assert norm > 0.01
    assert float(update(module, source).norm()) == pytest.approx(0.1 * (clip or norm), rel=1e-3)


@pytest.mark.parametrize(("algorithm", "clip"), [("norm", 0.01), ("value", 1e-4)])
def test_a_fused_optimizer_is_clipped_in_bfloat16_as_any_other(source, tmp_path, algorithm, clip):
    """With an epsilon far above the gradients, AdamW moves the weights in proportion to them."""

    def trained(fused, clip):
        optimizer = partial(torch.optim.AdamW, lr=1.0, eps=10.0, weight_decay=0.0, fused=fused)
        module = SFTModule(policy=source, optimizer=optimizer)
        settings = {"gradient_clip_val": clip, "gradient_clip_algorithm": algorithm if clip else None}
        fit(module, tmp_path, steps=3, precision="bf16-mixed", **settings)
        return update(module, source)

    ours, theirs, unclipped = trained(True, clip), trained(False, clip), trained(False, None)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    assert 0 < float(theirs.norm()) < 0.5 * float(unclipped.norm())
