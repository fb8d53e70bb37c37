"""Decoding with shared prompts: what it launches and waits for, and that looking for ended rows changes no token."""

from dataclasses import replace

import pytest
import torch
from gpu_steps.decoding import CountDispatches

from vr1.policy import Lora, PolicySource
from vr1.rollout import Sampling
from vr1.rollout.cache import GroupCache, StaticGroupCache
from vr1.rollout.decoder import make_decoder
from vr1.rollout.shared import decode_shared
from vr1.types import Prefix

GROUP = 8


def random_prefix(policy, dtype):
    text = policy.base.config.get_text_config()
    shape = (1, text.num_key_value_heads, 50, text.hidden_size // text.num_attention_heads)
    layers = len(policy.base.model.language_model.layers)
    keys, values = ([torch.randn(shape, dtype=dtype) for _ in range(layers)] for _ in range(2))
    return Prefix(
        keys=keys,
        values=values,
        state=torch.randn(1, text.hidden_size, dtype=dtype),
        mask=torch.ones(1, 50, dtype=torch.bool),
        next_position=torch.full((1,), 50),
    )


@torch.inference_mode()
def per_token(policy, dtype, check_every=1):
    """Operators and waits of the host for each token."""
    counts = []
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False):
        for tokens in (4, 36):
            prefix, uniform = random_prefix(policy, dtype), torch.rand(GROUP, tokens, dtype=torch.float64)
            with CountDispatches() as count:
                sampling = Sampling(group_size=GROUP, max_new_tokens=tokens)
                decode_shared(policy, prefix, sampling, uniform, check_every)
            counts.append((sum(count.calls.values()), count.waits))
    return [(after - before) / 32 for before, after in zip(*counts, strict=True)]


def load(source):
    policy = source.load().eval()
    # No completion ends: this token is never sampled.
    policy.base.generation_config.eos_token_id = policy.forbidden_tokens[0]
    return policy


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({}, 23),
        ({"lora": Lora()}, 31),
        ({"lora": Lora(), "quantize": "nf4", "rollout_weights": "quantized"}, 40),
        ({"lora": Lora(), "quantize": "nf4", "rollout_weights": "dequantized"}, 31),
    ],
    ids=["full", "LoRA", "NF4 + LoRA", "NF4 dequantized + LoRA"],
)
def test_operators_of_a_layer(changes, most):
    if "quantize" in changes:
        pytest.importorskip("bitsandbytes")
    policy = load(PolicySource(dtype="bfloat16", **changes))
    text = policy.base.model.language_model
    deep = per_token(policy, torch.bfloat16)[0]
    text.layers = torch.nn.ModuleList(text.layers[:3])
    assert (deep - per_token(policy, torch.bfloat16)[0]) / 2 <= most


@pytest.mark.parametrize(("lora", "most"), [(None, 23), (Lora(), 31)], ids=["full", "LoRA"])
@pytest.mark.parametrize("static", [False, True])
def test_operators_of_a_layer_on_a_gpu(lora, most, static):
    """Counted on tensors without content, whose 16-bit products are those of a GPU."""
    policy = PolicySource(dtype="bfloat16", lora=lora).load().eval().to("meta")
    text, counts = policy.base.model.language_model, []
    with torch.inference_mode():
        for layers in (text.layers[:3], text.layers[:1]):
            text.layers = layers
            whole = random_prefix(policy, torch.bfloat16)
            keys = [part.to("meta") for part in whole.keys]
            cache = (StaticGroupCache if static else GroupCache)(replace(whole, keys=keys, values=keys), GROUP)
            decoder = make_decoder(policy, cache, GROUP)
            tokens, positions = (torch.zeros(GROUP, dtype=torch.long, device="meta") for _ in range(2))
            decoder(tokens, positions)
            with CountDispatches() as count:
                decoder(tokens, positions)
            counts.append(sum(count.calls.values()))
    # A static cache hides in each layer what is not stored yet.
    assert (counts[0] - counts[1]) / 2 <= most + static


def test_the_host_waits_for_fewer_than_one_token_in_five():
    policy = load(PolicySource())
    assert per_token(policy, torch.float32, check_every=1)[1] >= 1
    assert per_token(policy, torch.float32, check_every=16)[1] < 0.2


@pytest.mark.parametrize("check_every", [2, 16, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_looking_less_often_changes_nothing(source, encoder, records, check_every, top_p):
    policy = source.load().eval()
    sampling = Sampling(group_size=GROUP, max_new_tokens=40, top_p=top_p)
    with torch.no_grad():
        prefix = policy.prefill(encoder(records))
    uniform = torch.rand(len(records) * GROUP, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # Every third of the usual tokens ends a completion, so that rows leave at many moments.
    policy.base.generation_config.eos_token_id = list(range(0, policy.base.config.get_text_config().vocab_size, 30))
    with torch.inference_mode():
        expected = decode_shared(policy, prefix, sampling, uniform, check_every=1)
        found = decode_shared(policy, prefix, sampling, uniform, check_every)
    assert len(set(expected[1].tolist())) > 3
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_limit_of_one_token(source, encoder, records):
    policy = source.load().eval()
    sampling = Sampling(group_size=2, max_new_tokens=1)
    with torch.inference_mode():
        tokens, lengths, finished, log_probs = decode_shared(
            policy, policy.prefill(encoder(records)), sampling, torch.rand(2 * len(records), 1, dtype=torch.float64)
        )
    assert log_probs.shape == tokens.shape
    assert tokens.shape == (2 * len(records), 1)
    assert lengths.tolist() == [1] * len(tokens)
    ends = torch.isin(tokens[:, 0], torch.tensor(policy.eos_tokens))
    assert torch.equal(finished, ends)
