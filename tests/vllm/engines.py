"""Engines on the embedded model, started once and shared by the tests of a process, and comparisons with the policy."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from vr1.data.synthetic import SceneSource, SceneStyle
from vr1.policy import Lora, PolicySource
from vr1.prompts import PromptEncoder
from vr1.rollout import Sampling, VLLMSampler, Workload
from vr1.rollout.vllm.checks import find_vllm

NEEDS_VLLM = pytest.mark.skipif(
    find_vllm() is None, reason="vLLM is not installed; tests/vllm/run makes an environment with it"
)
SOURCE = PolicySource()
ADAPTERS = replace(SOURCE, lora=Lora(rank=5, alpha=10))
PROMPT_TOKENS, NEW_TOKENS = 1024, 160
ROLLOUT = Sampling(group_size=8, max_new_tokens=NEW_TOKENS)
GREEDY = Sampling(group_size=1, temperature=0.0, max_new_tokens=NEW_TOKENS)


def workload(source, **changes):
    return Workload(
        source=source,
        encoder=PromptEncoder(source.processor(), source.family(), PROMPT_TOKENS),
        dtype="float32",
        max_prompt_tokens=PROMPT_TOKENS,
        max_new_tokens=NEW_TOKENS,
        **changes,
    )


def new_sampler(source=SOURCE, **settings):
    sampler = VLLMSampler(cache_gib=0.25, max_sequences=64, **settings)
    sampler.setup(workload(source))
    return sampler


@cache
def shared_sampler(source=None):
    """One engine for full weights, and one for each other source; a test synchronises before it samples."""
    return new_sampler(source or SOURCE)


def scenes(count, split="val", **style):
    source = SceneSource(length=count, split=split, style=SceneStyle(**style))
    return [source[index] for index in range(count)]


def encode(records, source=SOURCE):
    return workload(source).encoder(records)


def tokenizer():
    return SOURCE.processor().tokenizer


def gaps(policy, prompts, rollout, temperature=1.0):
    """Absolute differences of log-probs between a rollout and a forward of the policy, of all tokens."""
    with torch.no_grad():
        log_probs, _ = policy.eval().log_probs(prompts, rollout.tokens, rollout.mask, temperature)
    return (log_probs - rollout.log_probs).abs()[rollout.mask]


def train(policy, prompts, steps=3, rate=2e-4):
    """Some optimizer steps that change every trainable weight visibly."""
    optimizer = torch.optim.AdamW([part for part in policy.parameters() if part.requires_grad], lr=rate)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(20, 400, (len(prompts), 2, 12), generator=generator)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    for _ in range(steps):
        log_probs, _ = policy.train().log_probs(prompts, tokens, mask)
        (-log_probs.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy.eval()
