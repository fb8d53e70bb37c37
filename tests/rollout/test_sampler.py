"""The interface of samplers: all completions come from it, in training and evaluation, with weights of that moment."""

from dataclasses import replace

import pytest
import torch

from tests.trainers import trainer
from vr1 import SFTModule
from vr1.data import SceneDataModule, SceneStyle
from vr1.errors import UserError
from vr1.modules.grpo import GRPOModule
from vr1.policy import Lora
from vr1.rewards import Reward, RewardTerm
from vr1.rollout import Sampler, Sampling, SharedPrefixSampler, generate
from vr1.rollout.kernels import Kernels
from vr1.types import Rollout


class Same(RewardTerm):
    def score(self, match, criterion) -> float:
        return 0.5


class Scripted(Sampler):
    """Answers with fixed tokens, and notes what it is asked for."""

    computes_with_policy = False

    def __init__(self, gap: float = 0.0) -> None:
        self.gap = gap
        self.calls: list[str] = []
        self.gaps: list[float] = []
        self.weights: list[float] = []

    def setup(self, workload) -> None:
        self.workload = workload

    def synchronise(self, policy, prompts) -> None:
        self.calls.append("weights")
        self.weights.append(float(policy.base.lm_head.weight.detach().sum()))

    def sample(self, policy, prompts, sampling, tokenizer, draw=0, prefix=None, with_graph=False) -> Rollout:
        self.calls.append(f"sample {sampling.group_size}")
        tokens = torch.tensor([40, 41, 42, policy.eos_tokens[0]]).expand(len(prompts), sampling.group_size, 4).clone()
        mask = torch.ones_like(tokens, dtype=torch.bool)
        with torch.no_grad():
            log_probs, _ = policy.log_probs(prompts, tokens, mask)
        return Rollout(
            tokens=tokens,
            mask=mask,
            finished=mask[..., -1],
            log_probs=log_probs - self.gap,
            texts=[["scripted"] * sampling.group_size] * len(prompts),
            seconds={"decode": 1.0},
        )

    def check_gap(self, mean, sampling) -> None:
        self.gaps.append(mean)

    def describe(self):
        return {"sampler": "scripted"}


def module(source, sampler, kind=GRPOModule, **settings):
    if kind is GRPOModule:
        settings |= {"sampling": Sampling(group_size=3, max_new_tokens=9)}
    return kind(
        policy=source,
        reward=Reward(terms={"same": Same()}),
        evaluation=Sampling(group_size=1, temperature=0.0, max_new_tokens=6),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        max_prompt_tokens=256,
        sampler=sampler,
        **settings,
    )


def scenes():
    return SceneDataModule(SceneStyle(), train_scenes=8, val_scenes=4, batch_size=2, eval_batch_size=2, num_workers=0)


def test_training_resampling_and_validation_sample_through_it(source, tmp_path):
    sampler = Scripted(gap=0.25)
    made = module(source, sampler, resample_zero_variance=1)
    run = trainer(tmp_path, max_steps=2, max_epochs=-1, limit_val_batches=2, val_check_interval=1)
    run.fit(made, scenes())
    step = ["weights", "sample 3", "sample 3"]
    validation = ["weights", "sample 1", "sample 1"]
    assert sampler.calls == [*step, *validation, *step, *validation]
    assert sampler.workload.max_new_tokens == 9
    assert sampler.workload.max_prompt_tokens == 256
    assert sampler.gaps == pytest.approx([0.25, 0.25], abs=1e-4)
    assert run.callback_metrics["grpo/completion_tokens"] == 4
    assert run.callback_metrics["perf/synchronise_seconds"] >= 0


def test_it_gets_the_weights_of_each_step(source, tmp_path):
    class Alternating(RewardTerm):
        def scores(self, matches, criterion):
            return torch.arange(len(matches)) % 2 * 1.0

        def score(self, match, criterion) -> float:
            raise AssertionError("scores() gives all rewards")

    sampler = Scripted()
    made = module(source, sampler)
    made.reward = Reward(terms={"alternating": Alternating()})
    sampler_of_one_token = sampler.sample

    def two_answers(policy, prompts, sampling, *rest):
        rollout = sampler_of_one_token(policy, prompts, sampling, *rest)
        rollout.tokens[:, 1:, 0] = 50
        return rollout

    sampler.sample = two_answers
    trainer(tmp_path, max_steps=3, max_epochs=-1).fit(made, scenes())
    assert len(set(sampler.weights)) == 3


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_evaluation_synchronises_once(source, tmp_path, command):
    sampler = Scripted()
    made = module(source, sampler, kind=SFTModule)
    run = trainer(tmp_path, limit_val_batches=2, limit_test_batches=2, limit_predict_batches=2)
    outputs = getattr(run, command)(made, scenes())
    assert sampler.calls == ["weights", "sample 1", "sample 1"]
    if command == "predict":
        assert {item.completion for batch in outputs for item in batch} == {"scripted"}


def test_answers_of_two_samplers_do_not_mix(source):
    described = [module(source, sampler).evaluation_settings() for sampler in (None, SharedPrefixSampler(), Scripted())]
    assert described[0] == described[1]
    assert described[1] != described[2]


def test_the_default_is_the_decoder_with_the_same_random_numbers(source, encoder, prompts):
    policy, sampling = source.load().eval(), Sampling(group_size=3, max_new_tokens=8)
    tokenizer = encoder.processor.tokenizer
    expected = generate(policy, prompts, sampling, tokenizer, draw=7, kernels=Kernels())
    rollout = SharedPrefixSampler().sample(policy, prompts, sampling, tokenizer, draw=7)
    assert (rollout.tokens == expected.tokens).all()
    assert (rollout.log_probs == expected.log_probs).all()
    assert not rollout.prefix.state.requires_grad


def test_with_dropout_the_gap_says_nothing_of_the_sampler(source, tmp_path):
    sampler = Scripted(gap=0.5)
    made = module(replace(source, lora=Lora(rank=2, dropout=0.5)), sampler)
    run = trainer(tmp_path, max_steps=1, max_epochs=-1)
    run.fit(made, scenes())
    assert sampler.gaps == []
    assert run.callback_metrics["grpo/sampler_gap"] > 0


def test_a_sampler_can_stop_the_training(source, tmp_path):
    class Refuses(Scripted):
        def check_gap(self, mean, sampling):
            raise UserError(f"the gap is {mean:.2f}")

    with pytest.raises(UserError, match=r"the gap is 0\.50"):
        trainer(tmp_path, max_steps=2, max_epochs=-1).fit(module(source, Refuses(gap=0.5)), scenes())
