"""The decoder that runs the layers by itself against transformers' forward."""

from dataclasses import replace

import pytest
import torch
from gpu_steps.correctness import sampler_gap
from gpu_steps.run import Bench

from tests.policy.tiny_models import source_of
from vr1.policy import Lora, PolicySource
from vr1.prompts import PromptEncoder
from vr1.rollout.cache import GroupCache
from vr1.rollout.decoder import LayerDecoder, ModelDecoder, fast_rms_norm, make_decoder
from vr1.rollout.rotation import Rotation

GROUP = 3


@pytest.fixture(params=["qwen2_5_vl", "qwen2_vl", "qwen3_vl", "internvl"])
def other(request, source, tmp_path):
    return source_of(request.param, source, tmp_path)


@pytest.mark.parametrize(
    ("changes", "autocast"),
    [({}, False), ({"lora": Lora(rank=2)}, False), ({"dtype": "bfloat16"}, False), ({}, True)],
    ids=str,
)
def test_both_decoders_agree_while_rows_leave(other, records, changes, autocast):
    policy = replace(other, **changes).load().eval()
    prompts = PromptEncoder(other.processor(), other.family(), 1024)(records)
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(len(records) * GROUP)
    tolerance = 0.1 if autocast or "dtype" in changes else 1e-4
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    with torch.no_grad(), mixed:
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        prefix = policy.prefill(prompts)
        caches = [GroupCache(prefix, GROUP) for _ in range(2)]
        ours = make_decoder(policy, caches[0], len(rows))
        assert type(ours) is LayerDecoder
        theirs = ModelDecoder(policy, caches[1])
        position = prefix.next_position.repeat_interleave(GROUP)
        for step in range(6):
            if step == 3:
                rows = rows[[0, 2, 3, 4]]
                for cache in caches:
                    cache.select(rows)
                ours = make_decoder(policy, caches[0], len(rows))
            tokens = torch.randint(20, 400, (len(rows),), generator=generator)
            found, expected = (run(tokens, position[rows] + step) for run in (ours, theirs))
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@torch.no_grad()
def test_angles_are_computed_once_where_they_do_not_depend_on_the_length(other, records):
    policy = other.load().eval()
    prefix = policy.prefill(PromptEncoder(other.processor(), other.family(), 1024)(records))
    positions, tokens = prefix.next_position + torch.tensor([0, 3, 7]), torch.tensor([30, 40, 50])
    end = int(positions.max()) + 1
    expected = make_decoder(policy, GroupCache(prefix, 1), 3)(tokens, positions)
    kept = make_decoder(policy, GroupCache(prefix, 1), 3, end=end)
    calls = []
    rotary = policy.base.model.language_model.rotary_emb
    rotary.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(kept(tokens, positions), expected, atol=1e-5, rtol=0)
    assert calls == []
    for kind in ("dynamic", "longrope"):
        rotary.rope_type = kind
        assert Rotation(policy, end)._angles is None


def test_layers_of_another_build_are_left_to_transformers(source, encoder, records):
    policy = source.load().eval()

    class OtherLayer(type(policy.base.model.language_model.layers[0])):
        pass

    policy.base.model.language_model.layers[-1].__class__ = OtherLayer
    with torch.no_grad():
        prefix = policy.prefill(encoder(records))
        assert type(make_decoder(policy, GroupCache(prefix, GROUP), 9)) is ModelDecoder


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 4e-3)], ids=str
)
def test_the_norm_is_that_of_transformers(source, dtype, tolerance):
    norm = source.load().base.model.language_model.norm
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.to(dtype)
        # In the smallest rows the epsilon decides.
        states = torch.randn(5, 4, len(norm.weight)) * torch.tensor([1e-4, 1e-2, 1.0, 100.0])[:, None]
        states = states.to(dtype)
        torch.testing.assert_close(fast_rms_norm(norm)(states), norm(states), atol=0.1 * tolerance, rtol=tolerance)


def test_sampler_and_training_differ_little_in_bfloat16(tmp_path):
    """Rounded scores and logits doubled the mean, and trebled the largest difference."""
    bench = Bench(device="cpu", shape="tiny", out=tmp_path)
    gap = sampler_gap(bench, PolicySource(dtype="bfloat16"))
    assert gap["mean"] < 5e-3
    assert gap["max"] < 0.1
