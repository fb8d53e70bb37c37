"""Engines on the embedded model, started once and shared by the tests of a process, and comparisons with the policy."""

from dataclasses import replace

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
# Large images are allowed, which make prompts of several hundred tokens; small ones stay as they are.
SOURCE = PolicySource(max_pixels=320_000)
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


_SHARED: dict[str, VLLMSampler] = {}


def shared_sampler(source=SOURCE):
    """One engine for each source; a test synchronises before it samples."""
    if repr(source) not in _SHARED:
        _SHARED[repr(source)] = new_sampler(source)
    return _SHARED[repr(source)]


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


def train(policy, rate, steps=3):
    """Some optimizer steps on correct answers to scenes unlike those that the model knows."""
    encoder = workload(SOURCE).encoder
    prompts = encoder(scenes(6, "train", tint=0.5, noise=14.0))
    tokens, mask = encoder.targets(prompts, policy.eos_tokens[0])
    optimizer = torch.optim.AdamW([part for part in policy.parameters() if part.requires_grad], lr=rate)
    for _ in range(steps):
        log_probs, _ = policy.train().log_probs(prompts, tokens, mask)
        (-log_probs.sum() / mask.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy.eval()
