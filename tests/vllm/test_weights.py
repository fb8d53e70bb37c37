"""The engine's weights: all of them, adapters, a 4-bit base; and each way of keeping old ones is noticed."""

from dataclasses import replace

import pytest
import torch

from tests.vllm.engines import (
    ADAPTERS,
    NEEDS_VLLM,
    ROLLOUT,
    SOURCE,
    encode,
    gaps,
    new_sampler,
    scenes,
    shared_sampler,
    tokenizer,
    train,
)
from vr1.errors import UserError
from vr1.policy import Lora
from vr1.rollout.vllm import sampler as vllm_sampler
from vr1.rollout.vllm.local import LocalEngine

pytestmark = NEEDS_VLLM
# For images much larger than those that the model was made on: it is in doubt, and rounding grows with doubt.
IN_DOUBT = 5e-4


def gap(sampler, policy, prompts, draw=1):
    """The mean difference of log-probs, which the sampler checks as a training has it do."""
    rollout = sampler.sample(policy, prompts, ROLLOUT, tokenizer(), draw)
    mean = float(gaps(policy, prompts, rollout).mean())
    sampler.check_gap(mean, ROLLOUT)
    return mean


def test_all_weights_after_optimizer_steps_and_stale_ones_before():
    policy, sampler, prompts = SOURCE.load().eval(), shared_sampler(), encode(scenes(4))
    sampler.synchronise(policy, prompts)
    vision = [value.clone() for name, value in policy.named_parameters() if "visual" in name]
    train(policy, rate=1e-4)
    moved = [value for name, value in policy.named_parameters() if "visual" in name]
    assert all((old != new).any() for old, new in zip(vision, moved, strict=True)), "the vision tower is trained"
    with pytest.raises(UserError, match=r"log-probs of vLLM and of the policy differ by .* in this rollout"):
        gap(sampler, policy, prompts)
    sampler.synchronise(policy, prompts)
    after = gap(sampler, policy, prompts)
    print(f"after 3 optimizer steps of all weights: mean difference {after:.2e}")
    assert after < 1e-4


def test_a_long_prompt_after_an_update():
    """A prompt of several hundred tokens, of which most are cached by the old weights."""
    policy, sampler = SOURCE.load().eval(), shared_sampler()
    prompts = encode(scenes(2, canvas_sizes=((560, 448),), object_size=(60.0, 160.0)))
    assert prompts.mask.sum(1).min() > 300
    sampler.synchronise(policy, prompts)
    before = gap(sampler, policy, prompts)
    train(policy, rate=1e-4)
    sampler.synchronise(policy, prompts)
    assert max(before, gap(sampler, policy, prompts)) < IN_DOUBT


def test_a_missing_tied_head_is_noticed(monkeypatch):
    def without_head(policy, dtype):
        return ((name, value) for name, value in vllm_sampler_weights(policy, dtype) if name != "lm_head.weight")

    policy, sampler, prompts = SOURCE.load().eval(), shared_sampler(), encode(scenes(4))
    sampler.synchronise(policy, prompts)
    train(policy, rate=1e-4)
    vllm_sampler_weights = vllm_sampler.all_weights
    monkeypatch.setattr(vllm_sampler, "all_weights", without_head)
    sampler.synchronise(policy, prompts)
    with pytest.raises(UserError, match="the engine has other weights"):
        gap(sampler, policy, prompts)


def test_keys_of_old_weights_are_noticed(monkeypatch):
    """With the cache of prompts kept, a long prompt has keys and values of the old weights."""
    policy, sampler = SOURCE.load().eval(), shared_sampler()
    prompts = encode(scenes(2, canvas_sizes=((560, 448),), object_size=(60.0, 160.0)))
    sampler.synchronise(policy, prompts)
    gap(sampler, policy, prompts)
    train(policy, rate=1e-4)
    with monkeypatch.context() as patched:
        patched.setattr(LocalEngine, "reset", lambda engine: engine._llm.llm_engine.reset_encoder_cache())
        sampler.synchronise(policy, prompts)
    with pytest.raises(UserError, match="the engine has other weights"):
        gap(sampler, policy, prompts)
    sampler.synchronise(policy, prompts)
    assert gap(sampler, policy, prompts) < IN_DOUBT


def with_noise(policy, seed):
    """A policy whose adapters do something; those of peft begin at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in policy.named_parameters():
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.02)
    return policy


def test_adapters_off_on_changed_and_trained():
    policy, sampler, prompts = ADAPTERS.load().eval(), shared_sampler(ADAPTERS), encode(scenes(4))
    sampler.synchronise(policy, prompts)
    assert gap(sampler, policy, prompts) < 1e-4
    untrained = sampler.sample(policy, prompts, ROLLOUT, tokenizer()).texts
    for seed in (1, 2):
        with_noise(policy, seed)
        sampler.synchronise(policy, prompts)
        assert gap(sampler, policy, prompts) < 1e-4
        assert sampler.sample(policy, prompts, ROLLOUT, tokenizer()).texts != untrained
    train(policy, rate=1e-3)
    with pytest.raises(UserError, match="the engine has other weights"):
        gap(sampler, policy, prompts)
    sampler.synchronise(policy, prompts)
    assert gap(sampler, policy, prompts) < 1e-4


def test_an_old_adapter_under_its_old_number_is_noticed(monkeypatch):
    policy, sampler, prompts = ADAPTERS.load().eval(), shared_sampler(ADAPTERS), encode(scenes(4))
    sampler.synchronise(with_noise(policy, 1), prompts)
    with monkeypatch.context() as patched:
        # As if an adapter were replaced in place: under a known number, vLLM keeps the one that it has.
        patched.setattr(sampler._engine._llm.llm_engine, "remove_lora", lambda number: True)
        patched.setattr(sampler._engine, "_number", sampler._engine._number - 1)
        sampler.synchronise(with_noise(policy, 2), prompts)
    with pytest.raises(UserError, match="the engine has other weights"):
        gap(sampler, policy, prompts)
    sampler.synchronise(policy, prompts)
    assert gap(sampler, policy, prompts) < 1e-4


def test_one_adapter_is_held_at_a_time():
    policy, sampler, prompts = ADAPTERS.load().eval(), shared_sampler(ADAPTERS), encode(scenes(1))
    for _ in range(3):
        sampler.synchronise(policy, prompts)
        sampler.sample(policy, prompts, replace(ROLLOUT, max_new_tokens=2), tokenizer())
    assert len(sampler._engine._llm.llm_engine.list_loras()) == 1


def test_a_4_bit_base_with_adapters_and_limits_of_resolution():
    """The engine has the same numbers: the base as it is dequantized for every product."""
    source = replace(SOURCE, lora=Lora(rank=2), quantize="nf4", max_pixels=60_000, min_pixels=20_000)
    policy, sampler = with_noise(source.load().eval(), 1), new_sampler(source)
    prompts = encode(scenes(3, canvas_sizes=((560, 448),), object_size=(60.0, 160.0)), source)
    sampler.synchronise(policy, prompts)
    assert gap(sampler, policy, prompts) < IN_DOUBT
    unquantized = replace(source, quantize=None).load().eval()
    rollout = sampler.sample(policy, prompts, ROLLOUT, tokenizer())
    assert gaps(with_noise(unquantized, 1), prompts, rollout).mean() > 5e-3, "4 bits make a difference"
