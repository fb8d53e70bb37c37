"""A supervised term adds the gradient of supervised fine-tuning to that of the rewards, in one forward."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.modules.test_warm_start import Alternating, fit, weights
from tests.policy.tiny_models import write_tiny
from vr1.errors import UserError
from vr1.losses import GRPO
from vr1.modules.grpo import GRPOModule
from vr1.modules.sft import SFTModule
from vr1.modules.supervised_term import SupervisedTerm, append_answers
from vr1.policy import Lora, PolicySource
from vr1.rewards import Reward
from vr1.rollout import Sampling

WEIGHT = 0.3
SGD = partial(torch.optim.SGD, lr=0.1)


def grpo(source, weight=None, **settings):
    return GRPOModule(
        policy=source,
        reward=Reward(terms={"length": Alternating()}),
        # More than the longest answer to these scenes has.
        sampling=Sampling(group_size=3, max_new_tokens=120),
        loss=GRPO(kl_coef=0.0),
        supervised=None if weight is None else SupervisedTerm(weight=weight),
        optimizer=SGD,
        seed=1,
        **settings,
    )


def moved(module, folder, **settings):
    """By how much one step moves each weight, and what it logged."""
    module.configure_model()
    before = weights(module)
    logged = {}

    class Logged(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            logged.update({name: float(value) for name, value in trainer.callback_metrics.items()})

    fit(module, folder, 1, [Logged()], **settings)
    return {name: value - before[name] for name, value in weights(module).items()}, logged


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_vl", "gemma3"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_is_the_sum_of_both(tmp_path, kind, accumulate):
    """Of models that share the prompt with the completions, and of one that does not (gemma3)."""
    write_tiny(kind, tmp_path / "model")
    source = PolicySource(path=str(tmp_path / "model"))
    settings = {"accumulate_grad_batches": accumulate}
    both, logged = moved(grpo(source, WEIGHT), tmp_path, **settings)
    rewards, of_rewards = moved(grpo(source), tmp_path, **settings)
    answers, of_answers = moved(SFTModule(policy=source, target_order="sorted", optimizer=SGD), tmp_path, **settings)
    assert logged["grpo/supervised_loss"] == pytest.approx(of_answers["sft/loss"], rel=1e-5)
    assert logged["grpo/supervised_cut"] == 0
    assert "grpo/supervised_loss" not in of_rewards
    for name in ("grpo/loss", "grpo/entropy", "grpo/completion_tokens", "grpo/sampler_gap", "reward/total"):
        assert logged[name] == pytest.approx(of_rewards[name], rel=1e-5, abs=1e-6), name
    for name, value in both.items():
        torch.testing.assert_close(value, rewards[name] + WEIGHT * answers[name], rtol=1e-3, atol=1e-6, msg=name)
    # Each of the two is a part that shows.
    for part in (rewards, answers):
        assert max(float(value.abs().max()) for value in part.values()) > 1e-4


def test_with_adapters_and_a_rollout_for_two_updates(source, tmp_path):
    """Where the reference is the policy without its adapters, and the first update's prompts are not reused."""
    lora = PolicySource(path=source.path, lora=Lora(rank=2))
    torch.manual_seed(0)
    both, logged = moved(grpo(lora, WEIGHT, updates_per_rollout=2), tmp_path)
    torch.manual_seed(0)
    answers, of_answers = moved(SFTModule(policy=lora, target_order="sorted", optimizer=SGD), tmp_path)
    torch.manual_seed(0)
    rewards, _ = moved(grpo(lora, updates_per_rollout=2), tmp_path)
    assert logged["grpo/supervised_loss"] == pytest.approx(of_answers["sft/loss"], rel=1e-5)
    for name, value in both.items():
        torch.testing.assert_close(value, rewards[name] + WEIGHT * answers[name], rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("longer", ["completions", "answers"])
def test_answers_are_the_last_of_their_groups(longer):
    tokens, answers = torch.arange(24).view(2, 3, 4), torch.arange(100, 112).view(2, 1, 6)
    if longer == "completions":
        answers = answers[..., :2]
    masks = [torch.rand(part.shape, generator=torch.Generator().manual_seed(1)) < 0.7 for part in (tokens, answers)]
    joined, mask, cut = append_answers(tokens, masks[0], answers, masks[1], limit=6)
    assert float(cut) == 0
    assert joined.shape == mask.shape == (2, 4, max(tokens.shape[-1], answers.shape[-1]))
    for prompt in range(2):
        for row, (own, present) in enumerate(
            [*zip(tokens[prompt], masks[0][prompt], strict=True), (answers[prompt, 0], masks[1][prompt, 0])]
        ):
            assert joined[prompt, row][mask[prompt, row]].tolist() == own[present].tolist()
    assert int(mask.sum()) == sum(int(part.sum()) for part in masks)


def test_long_answers_are_cut_and_counted():
    tokens, answers = torch.zeros(4, 2, 3, dtype=torch.long), torch.arange(24).view(4, 1, 6)
    present = torch.arange(6) < torch.tensor([6, 5, 4, 1])[:, None, None]
    mask = torch.ones_like(tokens, dtype=torch.bool)
    joined, joined_mask, cut = append_answers(tokens, mask, answers, present, limit=4)
    assert float(cut) == 2 / 4
    assert joined[:, 2].tolist() == answers[:, 0, :4].tolist()
    assert joined_mask[:, 2].sum(-1).tolist() == [4, 4, 4, 1]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_that_is_not_above_zero_is_refused(weight):
    with pytest.raises(UserError, match="must be above 0; leave supervised out"):
        SupervisedTerm(weight=weight)
