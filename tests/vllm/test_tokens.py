"""Tokens and log-probs of vLLM against the default sampler and the policy, with the embedded model in float32."""

from dataclasses import replace

import pytest
import torch

from tests.vllm.engines import GREEDY, NEEDS_VLLM, ROLLOUT, SOURCE, encode, gaps, scenes, shared_sampler, tokenizer
from vr1.rollout import SharedPrefixSampler

pytestmark = NEEDS_VLLM


@pytest.fixture(scope="module")
def policy():
    return SOURCE.load().eval()


@pytest.fixture(scope="module")
def sampler(policy):
    sampler = shared_sampler()
    sampler.synchronise(policy, encode(scenes(2)))
    return sampler


def test_greedy_answers_of_256_validation_scenes_equal_those_of_the_default_sampler(policy, sampler):
    same, records = 0, scenes(256)
    for start in range(0, len(records), 64):
        prompts = encode(records[start : start + 64])
        theirs = sampler.sample(policy, prompts, GREEDY, tokenizer())
        ours = SharedPrefixSampler().sample(policy, prompts, GREEDY, tokenizer())
        same += sum(left == right for left, right in zip(theirs.texts, ours.texts, strict=True))
    print(f"identical greedy answers: {same} of {len(records)}")
    assert same >= 0.99 * len(records)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probs_are_those_of_the_policy(policy, sampler, temperature):
    prompts, sampling = encode(scenes(8)), replace(ROLLOUT, temperature=temperature)
    rollout = sampler.sample(policy, prompts, sampling, tokenizer(), draw=3)
    difference = gaps(policy, prompts, rollout, temperature)
    print(f"log-probs at temperature {temperature}: mean {difference.mean():.2e}, max {difference.max():.2e}")
    assert difference.mean() < 1e-4
    assert (rollout.log_probs[~rollout.mask] == 0).all()


def test_a_rollout_has_the_form_of_every_rollout(policy, sampler):
    prompts = encode(scenes(4))
    rollout = sampler.sample(policy, prompts, replace(ROLLOUT, max_new_tokens=40), tokenizer(), draw=1)
    last = rollout.tokens.gather(-1, rollout.mask.sum(-1, keepdim=True) - 1)[..., 0]
    ends = torch.isin(last, torch.tensor(policy.eos_tokens))
    assert (ends == rollout.finished).all(), "a finished completion ends with its end token"
    assert rollout.finished.any()
    assert not rollout.finished.all(), "the test needs a completion that is cut off"
    assert (rollout.mask.sum(-1)[~rollout.finished] == 40).all()
    decoded = tokenizer().decode(rollout.tokens[1, 2][rollout.mask[1, 2]], skip_special_tokens=True)
    assert rollout.texts[1][2] == decoded
    assert rollout.prefix is None


def test_completions_depend_on_draw_record_and_place_alone(policy, sampler):
    records = scenes(3)
    together = sampler.sample(policy, encode(records), ROLLOUT, tokenizer(), draw=5)
    again = sampler.sample(policy, encode(records[::-1]), ROLLOUT, tokenizer(), draw=5)
    alone = [sampler.sample(policy, encode([record]), ROLLOUT, tokenizer(), draw=5) for record in records]
    other = sampler.sample(policy, encode(records), ROLLOUT, tokenizer(), draw=6)
    assert again.texts[::-1] == together.texts
    assert [rollout.texts[0] for rollout in alone] == together.texts
    assert all(left != right for left, right in zip(together.texts, other.texts, strict=True))
    assert all(len(set(group)) > 1 for group in together.texts), "completions of a group have seeds of their own"


def test_top_p_samples_likely_tokens_only(policy, sampler):
    prompts, top_p = encode(scenes(4)), 0.6
    rollout = sampler.sample(policy, prompts, replace(ROLLOUT, top_p=top_p, max_new_tokens=1), tokenizer(), draw=2)
    with torch.no_grad():
        logits = policy.logits(policy.prefill(prompts).state)
    logits[:, policy.forbidden_tokens] = -torch.inf
    ordered, order = logits.softmax(-1).sort(descending=True)
    nucleus = (ordered.cumsum(-1) - ordered < top_p).scatter(1, order, ordered.cumsum(-1) - ordered < top_p)
    assert nucleus.gather(1, rollout.tokens[:, :, 0]).all()


def test_sampling_changes_nothing_in_the_process(policy, sampler):
    states, threads = torch.get_rng_state(), torch.get_num_threads()
    sampler.sample(policy, encode(scenes(1)), ROLLOUT, tokenizer())
    assert (torch.get_rng_state() == states).all()
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1, "vLLM makes set_num_threads do nothing"
    torch.set_num_threads(threads)


def test_an_evaluation_in_inference_mode(policy, sampler):
    prompts = encode(scenes(2))
    with torch.inference_mode():
        sampler.synchronise(policy, prompts)
        inside = sampler.sample(policy, prompts, GREEDY, tokenizer())
    sampler.synchronise(policy, prompts)
    assert sampler.sample(policy, prompts, GREEDY, tokenizer()).texts == inside.texts


def test_image_tokens_are_never_sampled_even_when_they_are_likeliest():
    policy, sampler, prompts = SOURCE.load().eval(), shared_sampler(), encode(scenes(2))
    with torch.no_grad():
        head = policy.base.lm_head.weight
        state = policy.prefill(prompts).state
        head[policy.forbidden_tokens] = 3 * state.mean(0) / state.mean(0).norm() * head.norm(dim=1).max()
        likeliest = policy.logits(policy.prefill(prompts).state).argmax(-1)
    assert torch.isin(likeliest, torch.tensor(policy.forbidden_tokens)).any(), "the test needs a likely image token"
    sampler.synchronise(policy, prompts)
    for sampling in (GREEDY, ROLLOUT):
        tokens = sampler.sample(policy, prompts, replace(sampling, max_new_tokens=20), tokenizer()).tokens
        assert not torch.isin(tokens, torch.tensor(policy.forbidden_tokens)).any()
