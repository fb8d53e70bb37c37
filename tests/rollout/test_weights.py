"""4-bit weights in rollouts: dequantized once or as they are, the same tokens; and who decides."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch

from vr1.errors import UserError
from vr1.policy import Lora, PolicySource
from vr1.policy.free_memory import free_bytes
from vr1.policy.patches import four_bit_layers
from vr1.rollout import Sampling, SharedPrefixSampler, Workload, generate, linear, shared
from vr1.rollout.weights import (
    RolloutWeights,
    cache_bytes,
    check_room,
    dequantized_bytes,
    quantized_weights,
)

pytest.importorskip("bitsandbytes")
GIB = 2**30
SAMPLING = Sampling(group_size=3, max_new_tokens=30)


@pytest.fixture
def packed(source):
    return replace(source, lora=Lora(rank=2), quantize="nf4")


def loaded(source, **changes):
    torch.manual_seed(1)
    policy = replace(source, **changes).load().eval()
    with torch.no_grad():
        policy.base.lm_head.weight.copy_(torch.randn(policy.base.lm_head.weight.shape) * 0.2)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return policy


def memory(monkeypatch, gib):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=gib * GIB))


def products(monkeypatch):
    """Counts products with 4-bit weights."""
    import bitsandbytes

    calls, original = [], bitsandbytes.matmul_4bit
    monkeypatch.setattr(bitsandbytes, "matmul_4bit", lambda *args, **named: calls.append(1) or original(*args, **named))
    return calls


@torch.no_grad()
def test_the_same_tokens_either_way(packed, encoder, prompts, monkeypatch):
    calls, tokenizer = products(monkeypatch), encoder.processor.tokenizer
    rollouts = {}
    for form in ("quantized", "dequantized"):
        policy = loaded(packed, rollout_weights=form)
        prefix = policy.prefill(prompts)
        calls.clear()
        rollouts[form] = generate(policy, prompts, SAMPLING, tokenizer, draw=3, prefix=prefix)
        assert bool(calls) == (form == "quantized")
    assert torch.equal(rollouts["quantized"].tokens, rollouts["dequantized"].tokens)
    torch.testing.assert_close(rollouts["quantized"].log_probs, rollouts["dequantized"].log_probs, atol=1e-4, rtol=0)
    # The policy itself keeps its 4 bits.
    assert {layer.weight.dtype for layer in four_bit_layers(policy.base).values()} == {torch.uint8}


@torch.no_grad()
def test_rows_that_leave_dequantize_nothing_twice_at_a_time(packed, encoder, prompts, monkeypatch):
    """Peak of live dequantized weights: once all of them, also when the decoder is prepared for fewer rows."""
    import weakref

    live, peak = set(), [0]
    original = linear._dense

    def counted(layer):
        weight = original(layer)
        live.add(key := object())
        weakref.finalize(weight, live.discard, key)
        peak[0] = max(peak[0], len(live))
        return weight

    monkeypatch.setattr(linear, "_dense", counted)
    policy = loaded(packed, rollout_weights="dequantized")
    policy.base.generation_config.eos_token_id = list(range(0, 800, 20))
    prefix, uniform = policy.prefill(prompts), torch.rand(24, 40, dtype=torch.float64)
    with torch.inference_mode():
        shared.decode_shared(policy, prefix, Sampling(group_size=8, max_new_tokens=40), uniform)
    assert 0 < peak[0] <= len(four_bit_layers(policy.base))


def test_auto_decides_by_free_memory_and_says_so_once(packed, encoder, prompts, monkeypatch, caplog):
    policy, sampler = loaded(packed), SharedPrefixSampler()
    with torch.no_grad():
        prefix = policy.prefill(prompts)
    calls, tokenizer = products(monkeypatch), encoder.processor.tokenizer

    def sample(gib):
        memory(monkeypatch, gib)
        calls.clear()
        caplog.clear()
        with caplog.at_level(logging.INFO):
            sampler.sample(policy, prompts, SAMPLING, tokenizer, prefix=prefix)
        return bool(calls), [record.getMessage() for record in caplog.records if "rollout weights" in record.message]

    quantized, lines = sample(gib=8)
    assert not quantized
    assert len(lines) == 1
    assert lines[0].startswith("rollout weights: dequantized (dequantized weights take 0.00 GiB and decoding 0.00")
    assert "8.00 GiB are free on cpu" in lines[0]
    assert sample(gib=8) == (False, [])
    # A later rollout has no room: from now on with 4 bits, also when there is room again.
    quantized, lines = sample(gib=0)
    assert quantized
    assert lines[0].startswith("rollout weights: quantized (")
    assert sample(gib=8) == (True, [])


def test_what_top_p_takes_beside_the_logits_counts(packed, encoder, prompts, monkeypatch):
    policy = loaded(packed)
    with torch.no_grad():
        prefix = policy.prefill(prompts)
    vocabulary = policy.base.lm_head.out_features
    plain, top_p = SAMPLING, replace(SAMPLING, top_p=0.9)
    rest = dequantized_bytes(policy) + cache_bytes(prefix, SAMPLING.group_size, SAMPLING.max_new_tokens)
    # Logits, probabilities and blocks of them for nine rows; sorted ones, their order and the mask beside them.
    memory(monkeypatch, (rest + 4 * 3.1 * 9 * vocabulary) / 0.95 / GIB)
    assert RolloutWeights().choose(policy, prefix, plain, True)
    assert not RolloutWeights().choose(policy, prefix, top_p, True)
    memory(monkeypatch, (rest + 4 * 7.3 * 9 * vocabulary) / 0.95 / GIB)
    assert RolloutWeights().choose(policy, prefix, top_p, True)


def test_what_does_not_fit_is_refused(packed, encoder, prompts, monkeypatch):
    memory(monkeypatch, 1e-4)
    policy, tokenizer = loaded(packed, rollout_weights="dequantized"), encoder.processor.tokenizer
    with pytest.raises(UserError, match=r"rollout_weights=dequantized: .* 0\.00 GiB are free on cpu; set it to quant"):
        SharedPrefixSampler().sample(policy, prompts, SAMPLING, tokenizer)


def test_it_is_refused_before_weights_are_loaded(packed, encoder, monkeypatch):
    wanted = replace(packed, rollout_weights="dequantized")
    workload = Workload(source=wanted, encoder=encoder, dtype="float32", max_prompt_tokens=256, max_new_tokens=30)
    SharedPrefixSampler().setup(workload)
    memory(monkeypatch, 1e-4)
    with pytest.raises(UserError, match=r"their dequantized copies take 0\.00 GiB, and 0\.00 are free on cpu"):
        SharedPrefixSampler().setup(workload)
    for form in ("auto", "quantized"):
        check_room(replace(packed, rollout_weights=form), "float32", torch.device("cpu"))


def test_numbers_are_those_of_the_loaded_model(packed):
    policy = packed.load()
    layers = four_bit_layers(policy.base).values()
    assert layers
    count = sum(layer.weight.quant_state.shape.numel() for layer in layers)
    assert dequantized_bytes(policy) == 4 * count
    with torch.autocast("cpu", torch.bfloat16):
        assert dequantized_bytes(policy) == 2 * count
    assert dequantized_bytes(replace(packed, quantize=None).load()) == 0
    whole = sum(parameter.numel() for parameter in replace(packed, quantize=None, lora=None).load().parameters())
    assert quantized_weights(packed) == (count, whole - count)


@torch.no_grad()
def test_the_cache_takes_what_is_predicted(packed, encoder, prompts):
    policy = loaded(packed)
    prefix = policy.prefill(prompts)
    text = policy.base.config.get_text_config()
    head, layers = text.hidden_size // text.num_attention_heads, text.num_hidden_layers
    expected = 2 * len(prompts) * 3 * text.num_key_value_heads * head * 128 * 4 * (layers + 1)
    assert cache_bytes(prefix, group=3, tokens=100) == expected


@pytest.mark.parametrize("setting", ["dequantized", "auto"])
def test_layers_that_transformers_runs_keep_their_bits(packed, encoder, prompts, setting):
    policy = loaded(packed, rollout_weights=setting)

    class OtherLayer(type(policy.base.model.language_model.layers[0])):
        pass

    policy.base.model.language_model.layers[-1].__class__ = OtherLayer
    sampler, tokenizer = SharedPrefixSampler(), encoder.processor.tokenizer
    if setting == "auto":
        assert sampler.sample(policy, prompts, SAMPLING, tokenizer).tokens.shape[1] == 3
        return
    with pytest.raises(UserError, match="run by transformers"):
        sampler.sample(policy, prompts, SAMPLING, tokenizer)


def test_without_four_bits_there_is_nothing_to_choose(source):
    with pytest.raises(UserError, match="rollout_weights='dequantized' changes 4-bit weights only"):
        PolicySource(rollout_weights="dequantized")
    policy = SimpleNamespace(rollout_weights="quantized")
    assert RolloutWeights().choose(policy, None, SAMPLING, True) is False


def test_free_memory_of_a_gpu_counts_what_its_allocator_can_reuse(monkeypatch):
    device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (5 * GIB, 40 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 30 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 20 * GIB)
    assert free_bytes(device) == 15 * GIB
