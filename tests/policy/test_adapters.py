"""Adapters of `vr1.policy.adapters` against peft's own forward."""

import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from vr1.policy import Lora, PolicySource
from vr1.policy.adapters import fuse_adapters


def model_of(dtype=torch.float32, **settings):
    """Two layers with adapters that are no longer zero."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 6, bias=False)).to(dtype)
    network = get_peft_model(network, LoraConfig(target_modules=["0", "2"], r=3, lora_alpha=7, **settings))
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.5)
    return network


def both(network):
    fused = copy.deepcopy(network)
    fuse_adapters(fused)
    assert any(type(part).forward.__module__ == "vr1.policy.adapters" for part in fused.modules())
    return network, fused


def result_of(network, states, **autocast):
    states = states.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(autocast), cache_enabled=False):
        output = network(states)
    output.float().square().sum().backward()
    trained = {name: part.grad for name, part in network.named_parameters() if part.requires_grad}
    return output, states.grad, trained


@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 3, 12)])
def test_value_and_gradients_are_those_of_peft(shape):
    states = torch.randn(shape)
    expected, found = (result_of(network, states) for network in both(model_of()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_under_autocast_up_to_rounding_and_without_copies_of_the_input():
    states = torch.randn(40, 12, dtype=torch.bfloat16)
    networks = both(model_of(torch.bfloat16))
    expected, found = (result_of(network, states, mixed=True) for network in networks)
    assert found[0].dtype == expected[0].dtype == torch.bfloat16
    for ours, theirs in zip((found[0], found[1]), (expected[0], expected[1]), strict=True):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()
    for name, theirs in expected[2].items():
        assert found[2][name].dtype == torch.float32
        assert (found[2][name] - theirs).norm() < 0.02 * theirs.norm()
    stored = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda part: stored.append(part) or part, lambda part: part),
        torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
    ):
        networks[1](states)
    assert {part.dtype for part in stored if part.shape[0] == 40} == {torch.bfloat16}


def test_update_is_nearer_to_exact_than_pefts():
    states = torch.randn(300, 12, dtype=torch.bfloat16)
    networks = both(model_of(torch.bfloat16))
    exact = copy.deepcopy(networks[0]).double()(states.double())
    errors = []
    for network in networks:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            errors.append(float((network(states).double() - exact).norm()))
    assert errors[1] < errors[0]


def test_precisions_that_differ_without_autocast_are_left_to_peft():
    states = torch.randn(4, 12, dtype=torch.bfloat16)
    network, fused = both(model_of(torch.bfloat16))
    assert {part.dtype for part in network.parameters() if part.requires_grad} == {torch.float32}
    assert torch.equal(fused(states), network(states))


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
def test_other_kinds_are_left_to_peft(settings):
    states = torch.randn(4, 12)
    network, fused = both(model_of(**settings))
    assert torch.equal(fused(states), network(states))


def test_dropout_is_applied_in_training_alone():
    states = torch.randn(50, 12)
    network, fused = both(model_of(lora_dropout=0.5))
    results = []
    for model in (network, fused):
        torch.manual_seed(3)
        results.append(model.train()(states))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused.eval()(states), network.eval()(states), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(results[1], fused(states))


def test_disabled_merged_and_several_adapters():
    states = torch.randn(4, 12)
    network, fused = both(model_of())
    with network.disable_adapter(), fused.disable_adapter():
        assert torch.equal(fused(states), network(states))
    before = fused(states)
    fused.merge_adapter()
    torch.testing.assert_close(fused(states), before, rtol=1e-4, atol=1e-5)
    fused.unmerge_adapter()
    for model in (network, fused):
        torch.manual_seed(1)
        model.add_adapter("second", LoraConfig(target_modules=["0"], r=2, init_lora_weights=False))
        model.base_model.set_adapter(["default", "second"])
    torch.testing.assert_close(fused(states), network(states), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_every_adapter_of_a_policy_is_fused(quantize):
    policy = replace(PolicySource(lora=Lora()), quantize=quantize).load()
    layers = [part for part in policy.modules() if hasattr(part, "lora_A")]
    assert layers
    assert {type(part).forward.__module__ for part in layers} == {"vr1.policy.adapters"}


def test_outputs_of_another_precision_than_autocasts_keep_theirs():
    """As of 4-bit weights, whose outputs have the precision of their inputs."""
    network, fused = both(model_of())
    states = torch.randn(4, 12)
    for model in (network, fused):
        for part in model.modules():
            if hasattr(part, "base_layer"):
                part.base_layer.register_forward_hook(lambda _layer, _inputs, output: output.float())
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = network(states), fused(states)
    assert found.dtype == expected.dtype == torch.float32
    assert (found - expected).norm() < 0.01 * expected.norm()
