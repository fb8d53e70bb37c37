"""Shared-prefix decoding against transformers' own generate and against a loop without cache or sharing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vr1.prompts import PromptEncoder
from vr1.rollout import Sampling, generate
from vr1.rollout.sampling import sample_token


@pytest.fixture(params=[True, False], ids=["shared", "unshared"])
def policy(request, source):
    torch.manual_seed(1)
    policy = replace(source, share_prompt=request.param).load().eval()
    # An untrained model prefers no token: a head of its own makes its choices distinct, many end tokens let it end.
    policy.base.lm_head.weight = torch.nn.Parameter(torch.randn_like(policy.base.lm_head.weight) * 0.2)
    policy.base.generation_config.eos_token_id = list(range(300, 360))
    return policy


def slow_loop(policy, encoder: PromptEncoder, record, sampling: Sampling, draw: int):
    """Every token, and its log-prob, by a full forward over the whole sequence of one completion.

    There is no cache, no batch and no sharing.
    """
    prompt = encoder([record])
    chances = np.random.default_rng([draw, record.image_id]).random((sampling.group_size, sampling.max_new_tokens))
    completions = []
    for g in range(sampling.group_size):
        tokens: list[int] = []
        log_probs: list[float] = []
        while len(tokens) < sampling.max_new_tokens and (not tokens or tokens[-1] not in policy.eos_tokens):
            row = torch.cat([prompt.tokens, torch.tensor([tokens], dtype=torch.long)], dim=1)
            types = torch.cat([prompt.token_types, torch.zeros(1, len(tokens), dtype=torch.long)], dim=1)
            logits = policy.network(
                input_ids=row, attention_mask=torch.ones_like(row), mm_token_type_ids=types, **prompt.vision
            ).logits[:, -1]
            logits[:, policy.forbidden_tokens] = -torch.inf
            tokens.append(int(sample_token(logits.float(), sampling, torch.tensor([chances[g, len(tokens)]]))[0]))
            scaled = logits[0].double() / (sampling.temperature or 1.0)
            log_probs.append(float(scaled[tokens[-1]] - scaled.logsumexp(0)))
        completions.append((tokens, log_probs))
    return completions


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.7}, {"temperature": 0.5}, {"temperature": 0.0}], ids=str)
def test_same_tokens_as_a_loop_without_sharing(policy, encoder, records, prompts, settings):
    sampling = Sampling(group_size=3, max_new_tokens=12, **settings)
    with torch.no_grad():
        rollout = generate(policy, prompts, sampling, encoder.processor.tokenizer, draw=5)
        for b, record in enumerate(records):
            for g, (expected, log_probs) in enumerate(slow_loop(policy, encoder, record, sampling, draw=5)):
                assert rollout.tokens[b, g][rollout.mask[b, g]].tolist() == expected
                assert rollout.log_probs[b, g][rollout.mask[b, g]].tolist() == pytest.approx(log_probs, abs=2e-4)
                assert (rollout.log_probs[b, g][~rollout.mask[b, g]] == 0).all()
                assert bool(rollout.finished[b, g]) == (expected[-1] in policy.eos_tokens)


def test_rows_end_at_different_times(policy, encoder, prompts):
    rollout = generate(policy, prompts, Sampling(group_size=8, max_new_tokens=40), encoder.processor.tokenizer)
    assert len(set(rollout.mask.sum(-1).flatten().tolist())) > 3, "the test needs completions of several lengths"


def test_greedy_equals_transformers_generate(policy, encoder, records):
    for record in records:
        prompt = encoder([record])
        ours = generate(
            policy, prompt, Sampling(group_size=1, temperature=0.0, max_new_tokens=16), encoder.processor.tokenizer
        )
        theirs = policy.network.generate(
            input_ids=prompt.tokens,
            attention_mask=prompt.mask.long(),
            mm_token_type_ids=prompt.token_types,
            **prompt.vision,
            do_sample=False,
            max_new_tokens=16,
            bad_words_ids=[[token] for token in policy.forbidden_tokens],
        )[0, prompt.tokens.shape[1] :]
        kept = ours.tokens[0, 0][ours.mask[0, 0]]
        assert kept.tolist() == theirs[: len(kept)].tolist()


def test_a_completion_does_not_depend_on_its_batch(policy, encoder, records):
    sampling = Sampling(group_size=2, max_new_tokens=10)
    together = generate(policy, encoder(records), sampling, encoder.processor.tokenizer, draw=3)
    alone = [generate(policy, encoder([record]), sampling, encoder.processor.tokenizer, draw=3) for record in records]
    assert together.texts == [rollout.texts[0] for rollout in alone]
    other = generate(policy, encoder(records), sampling, encoder.processor.tokenizer, draw=4)
    assert other.texts != together.texts


def test_image_tokens_are_never_sampled_even_when_they_are_likeliest(policy, encoder, prompts):
    with torch.no_grad():
        policy.base.lm_head.weight[policy.forbidden_tokens] = policy.base.lm_head.weight.mean(0) * 1e3
    rollout = generate(policy, prompts, Sampling(group_size=4, max_new_tokens=20), encoder.processor.tokenizer)
    assert not torch.isin(rollout.tokens[rollout.mask], torch.tensor(policy.forbidden_tokens)).any()


def test_choose_follows_the_distribution():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    chances = torch.linspace(0, 1, 10001)[:-1]
    counts = torch.bincount(sample_token(logits.expand(len(chances), -1), Sampling(), chances)[0], minlength=4)
    torch.testing.assert_close(counts / len(chances), torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=2e-4, rtol=0)
    kept = sample_token(logits.expand(len(chances), -1), Sampling(top_p=0.65), chances)[0]
    assert set(kept.tolist()) == {2, 3}, "0.4 + 0.3 is the smallest set that reaches 0.65"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"group_size": 0}, "group_size"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_settings_out_of_range_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        Sampling(**settings)
