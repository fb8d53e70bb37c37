"""Gated MLPs of `vr1.policy.gates` against the formula in float64, and against transformers' own."""

import copy
import pickle
import subprocess
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from vr1.cpu_kernels import library, training
from vr1.policy import Lora, PolicySource
from vr1.policy.gates import GATED_MLPS, fuse_gate, gated
from vr1.policy.patches import apply_patches

pytestmark = pytest.mark.usefixtures("either")

# From where torch's own result is 0 to where it is infinite or no number.
EXTREMES = [0.0, -0.0, 1.0, -50.0, -87.0, -88.3, -88.6, -100.0, -1e4, -3e38, 88.6, 100.0, 3e38]
NO_NUMBERS = [float("inf"), -float("inf"), float("nan")]


def mlp_of(activation="silu", dtype=torch.float32):
    torch.manual_seed(0)
    return Qwen2MLP(SimpleNamespace(hidden_size=12, intermediate_size=21, hidden_act=activation)).to(dtype)


def result_of(network, states, mixed=False):
    states = states.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False):
        output = network(states)
    output.float().square().sum().backward()
    return [output, states.grad, *(part.grad for part in network.parameters() if part.requires_grad)]


def both(network):
    fused = copy.deepcopy(network)
    apply_patches(fused)
    assert any(type(part).forward.__module__ == "vr1.policy.gates" for part in fused.modules())
    return network, fused


def gradients_of(function, *inputs, direction):
    inputs = [part.detach().requires_grad_() for part in inputs]
    value = function(*inputs)
    return value.detach(), *torch.autograd.grad(value, inputs, direction)


# Vectors have 8 values, blocks 4096; the last shape has several threads.
@pytest.mark.parametrize("shape", [(1,), (8,), (3, 5), (1, 4097), (2, 3, 4096), (5, 3301)], ids=str)
def test_value_and_gradients_are_those_of_the_formula(shape):
    gate, up, direction = (torch.randn(shape) * size for size in (4, 1, 1))
    found = gradients_of(gated, gate, up, direction=direction)
    exact = gradients_of(
        lambda gate, up: gate / (1 + (-gate).exp()) * up, gate.double(), up.double(), direction=direction.double()
    )
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("count", [8, 5])
def test_extremes_come_out_as_torchs(count):
    gate = torch.tensor([*EXTREMES, *NO_NUMBERS]).repeat_interleave(len(NO_NUMBERS) + 1)
    up = torch.tensor([1.0, *NO_NUMBERS]).repeat(len(EXTREMES) + len(NO_NUMBERS))
    for gates, ups in zip(gate.split(count), up.split(count), strict=True):
        for other in (1.0, float("nan"), float("inf")):
            direction = torch.full_like(gates, other)
            found = gradients_of(gated, gates, ups, direction=direction)
            expected = gradients_of(lambda gate, up: silu(gate) * up, gates, ups, direction=direction)
            torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-35, equal_nan=True)
            with torch.no_grad():
                torch.testing.assert_close(
                    gated(gates.clone(), ups), expected[0], rtol=2e-6, atol=1e-35, equal_nan=True
                )


def test_inputs_and_gradients_that_are_not_contiguous():
    parts = torch.randn(2, 6, 22).unbind(-1)[0], torch.randn(6, 2).t(), torch.randn(1).expand(2, 6)
    found = gradients_of(gated, *parts[:2], direction=parts[2])
    expected = gradients_of(lambda gate, up: silu(gate) * up, *parts[:2], direction=parts[2])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(gated(*parts[:2]), expected[0], rtol=1e-5, atol=1e-6)


def test_threads_do_not_change_a_result():
    parts = [torch.randn(7, 4099) for _ in range(3)]
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(gradients_of(gated, *parts[:2], direction=parts[2]))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_to_the_last_bit(dtype):
    network, fused = both(mlp_of(dtype=dtype))
    states = torch.randn(4, 12, dtype=dtype)
    assert all(map(torch.equal, result_of(network, states), result_of(fused, states)))


@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 3, 12)], ids=str)
def test_mlp_is_that_of_transformers(shape):
    network, fused = both(mlp_of())
    states = torch.randn(shape)
    torch.testing.assert_close(result_of(fused, states), result_of(network, states), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(fused(states), network(states), rtol=1e-5, atol=1e-6)


def test_under_autocast_to_the_last_bit():
    network, fused = both(mlp_of())
    states = torch.randn(5, 12)
    assert all(map(torch.equal, result_of(network, states, mixed=True), result_of(fused, states, mixed=True)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused(states), network(states))


def test_gate_and_up_of_two_precisions():
    gate, up = torch.randn(6, dtype=torch.bfloat16, requires_grad=True), torch.randn(6)
    assert torch.equal(gated(gate, up), silu(gate) * up)


def test_mlps_with_adapters():
    network = get_peft_model(mlp_of(), LoraConfig(target_modules=["gate_proj", "up_proj", "down_proj"], r=2))
    for name, part in network.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(part, std=0.5)
    network, fused = both(network)
    states = torch.randn(4, 12)
    torch.testing.assert_close(result_of(fused, states), result_of(network, states), rtol=1e-4, atol=1e-5)


def test_recomputation_gives_the_same_gradients():
    _, fused = both(mlp_of())
    states = torch.randn(5, 12)
    plain = result_of(fused, states)
    fused.zero_grad()
    inputs = states.clone().requires_grad_()
    checkpoint(fused, inputs, use_reentrant=False).square().sum().backward()
    assert all(map(torch.equal, plain[1:], [inputs.grad, *(part.grad for part in fused.parameters())]))


def test_gate_and_up_alone_are_stored():
    stored = []
    gate, up = (torch.randn(4, 21, requires_grad=True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(lambda part: stored.append(part) or part, lambda part: part):
        gated(gate, up)
    assert [part.data_ptr() for part in stored] == [gate.data_ptr(), up.data_ptr()]


def test_gate_is_overwritten_only_where_nothing_needs_it():
    gate, up = torch.randn(2, 4, 21).unbind(0)
    with torch.no_grad():
        result = gated(gate, up)
    assert result.data_ptr() == gate.data_ptr()
    before = gate.clone()
    gated(gate, up.clone().requires_grad_())
    assert torch.equal(gate, before)


def test_class_keeps_its_name_and_can_be_copied_and_pickled():
    mlp, states = mlp_of(), torch.randn(3, 12)
    fuse_gate(mlp)
    assert isinstance(mlp, Qwen2MLP)
    assert type(mlp).__name__ == "Qwen2MLP"
    for other in (copy.deepcopy(mlp), pickle.loads(pickle.dumps(mlp))):
        assert type(other) is type(mlp)
        assert torch.equal(other(states), mlp(states))


def test_other_activations_stay():
    mlp = mlp_of("gelu")
    fuse_gate(mlp)
    assert type(mlp) is Qwen2MLP


@pytest.mark.parametrize("lora", [None, Lora()])
def test_every_gated_mlp_of_a_policy_is_fused(lora):
    policy = PolicySource(lora=lora).load()
    mlps = [part for part in policy.modules() if type(part).__name__ in GATED_MLPS]
    assert {type(part).__name__ for part in mlps} == {"Qwen2MLP", "Qwen2_5_VLMLP"}
    assert {type(part).forward.__module__ for part in mlps} == {"vr1.policy.gates"}


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_nothing_is_said(recwarn):
    assert not training.is_fused(torch.ones(2))
    assert not recwarn


def test_a_source_that_does_not_compile_is_said_once(monkeypatch, no_compiler):
    def fail(*_arguments, **_settings):
        return subprocess.CompletedProcess([], 1, "", "error: no such thing")

    monkeypatch.setattr(library, "compiler", lambda: ["cc"])
    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.warns(UserWarning, match="no such thing"):
        assert not training.is_fused(torch.ones(2))
    assert not training.is_fused(torch.ones(2))


def test_tensors_of_other_kinds_are_left_to_torch():
    class Kind(torch.Tensor):
        pass

    plain = torch.ones(2)
    for other in (plain.as_subclass(Kind), plain.double(), plain.to("meta"), plain.int()):
        assert not training.is_fused(plain, other)
