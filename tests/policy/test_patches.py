"""Patched models compute what transformers' own compute, in the way that the patches are for."""

import copy

import pytest
import torch
from transformers import AutoModelForImageTextToText
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention

from vr1.policy.patches import apply_patches
from vr1.policy.policy import Policy


@pytest.mark.parametrize("supported", [True, False])
def test_prompts_go_through_the_last_mlp_with_one_token(tiny_model, encoder, records, supported):
    network = AutoModelForImageTextToText.from_pretrained(tiny_model)
    layers = network.model.language_model.layers[-2:]
    if not supported:
        layers[-1].__class__ = type("OtherLayer", (type(layers[-1]),), {})
    policy = Policy(network)
    tokens_seen = {}
    for name, layer in zip(("before", "last"), layers, strict=True):
        layer.mlp.gate_proj.register_forward_hook(
            lambda _, inputs, __, name=name: tokens_seen.setdefault(name, []).append(inputs[0].shape[1])
        )
    prompts, tokens = encoder(records[:1]), torch.full((1, 2, 3), 40)
    policy.log_probs(prompts, tokens, torch.ones_like(tokens, dtype=torch.bool))
    prompt = prompts.tokens.shape[1]
    # Nothing is predicted by the last of a completion's three tokens.
    assert tokens_seen == {"before": [prompt, 4], "last": [1 if supported else prompt, 4]}


@pytest.mark.parametrize("starts", [[0, 16, 32, 48], [0, 16, 24, 40, 44, 48], [0, 48]], ids=str)
def test_batched_windows_equal_windows_one_by_one(starts):
    torch.manual_seed(0)
    config = Qwen2_5_VLVisionConfig(hidden_size=32, num_heads=2)
    config._attn_implementation = "sdpa"
    original = torch.nn.Sequential(Qwen2_5_VLVisionAttention(config))
    patched = copy.deepcopy(original)
    apply_patches(patched)
    assert type(patched[0]) is not Qwen2_5_VLVisionAttention
    angles = torch.rand(48, 16)
    position = {"position_embeddings": (angles.cos(), angles.sin())}
    states = torch.randn(48, 32)
    results = []
    for network in (original, patched):
        inputs = states.clone().requires_grad_(True)
        result = network[0](inputs, torch.tensor(starts, dtype=torch.int32), **position)
        result.square().sum().backward()
        results.append([result, inputs.grad, *(weight.grad for weight in network.parameters())])
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_the_policy_batches_its_windows(source):
    kinds = {type(layer) for layer in source.load().modules() if isinstance(layer, Qwen2_5_VLVisionAttention)}
    assert len(kinds) == 1
    assert kinds != {Qwen2_5_VLVisionAttention}


@pytest.mark.parametrize("channels", [3, 1])
def test_patch_embeddings_as_products_equal_convolutions(channels):
    torch.manual_seed(0)
    original = torch.nn.Sequential(torch.nn.Conv3d(channels, 8, kernel_size=(2, 4, 4), stride=(2, 4, 4)))
    patched = copy.deepcopy(original)
    apply_patches(patched)
    for size in ((2, 4, 4), (4, 8, 8)):
        inputs = torch.randn(5, channels, *size)
        torch.testing.assert_close(patched(inputs), original(inputs), atol=1e-5, rtol=1e-4)
