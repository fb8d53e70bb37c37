"""Rotary positions of `vr1.policy.rotary` against transformers' functions and layers."""

import copy
import pickle

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaConfig, apply_rotary_pos_emb
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from vr1.cpu_kernels import training
from vr1.policy import PolicySource
from vr1.policy.rotary import fuse_rotation, fused_rotation

pytestmark = pytest.mark.usefixtures("either")

FUNCTIONS = {-2: apply_rotary_pos_emb_vision, 1: apply_rotary_pos_emb}


def results_of(function, query, key, cosine, sine, directions):
    """Rotated queries and keys, and gradients of both."""
    inputs = [part.detach().requires_grad_() for part in (query, key)]
    rotated = function(*inputs, cosine, sine)
    return *(part.detach() for part in rotated), *torch.autograd.grad(rotated, inputs, directions)


def vision(patches, heads, width):
    """As the vision tower has them: queries and keys are parts of one tensor."""
    query, key, _ = torch.randn(patches, 3, heads, width).unbind(1)
    return query, key, *torch.randn(2, patches, width)


def text(rows, tokens, heads, width):
    """As language models have them, with fewer heads of keys."""
    query, key = (torch.randn(rows, tokens, count, width).transpose(1, 2) for count in (heads, (heads + 1) // 2))
    return query, key, *torch.randn(2, rows, tokens, width)


CASES = {
    "vision": (-2, lambda: vision(5, 3, 16)),
    "vision, halves of 5": (-2, lambda: vision(7, 2, 10)),
    "vision, one patch": (-2, lambda: vision(1, 1, 2)),
    "vision, several threads": (-2, lambda: vision(150, 3, 80)),
    "text": (1, lambda: text(1, 6, 4, 16)),
    "text, halves of 9": (1, lambda: text(3, 2, 3, 18)),
    "text, several threads": (1, lambda: text(2, 90, 4, 64)),
    "not contiguous": (-2, lambda: [torch.randn(16, 3, 5).permute(2, 1, 0)] * 2 + [torch.randn(16, 5).t()] * 2),
}


@pytest.mark.parametrize(("heads", "made"), CASES.values(), ids=CASES)
def test_value_and_gradients_are_those_of_transformers(heads, made, either):
    torch.manual_seed(0)
    inputs = made()
    directions = [torch.randn_like(part) for part in inputs[:2]]
    original, called = FUNCTIONS[heads], []
    rotate = fused_rotation(lambda *inputs: called.append(inputs) or original(*inputs), heads)
    expected = results_of(original, *inputs, directions)
    torch.testing.assert_close(results_of(rotate, *inputs, directions), expected, rtol=1e-5, atol=1e-6)
    assert bool(called) == (either == "torch")


def test_threads_do_not_change_a_result():
    inputs = vision(150, 3, 80)
    directions = [torch.randn_like(part) for part in inputs[:2]]
    rotate, results, before = fused_rotation(apply_rotary_pos_emb_vision, -2), [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(results_of(rotate, *inputs, directions))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_come_out_as_torchs(special):
    query, key, cosine, sine = vision(3, 2, 20)
    query[1, 0, 17] = special
    sine[0, 3] = 0.0
    key[0, 1, 13] = special
    directions = [key, query]
    found, expected = (
        results_of(function, query, key, cosine, sine, directions)
        for function in (fused_rotation(apply_rotary_pos_emb_vision, -2), apply_rotary_pos_emb_vision)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_positions_that_are_broadcast_or_trained_and_other_precisions_are_left_to_transformers():
    query, key, cosine, sine = text(3, 4, 2, 8)
    others = {
        "broadcast": (query, key, cosine[:1], sine[:1]),
        "trained": (query, key, cosine.clone().requires_grad_(), sine),
        "bfloat16": [part.bfloat16() for part in (query, key, cosine, sine)],
    }
    called = []
    rotate = fused_rotation(lambda *inputs: called.append(inputs) or apply_rotary_pos_emb(*inputs), 1)
    for inputs in others.values():
        assert all(map(torch.equal, rotate(*inputs), apply_rotary_pos_emb(*inputs)))
    assert len(called) == len(others)


def attention_of():
    config = LlamaConfig(hidden_size=24, num_attention_heads=3, num_key_value_heads=1)
    config._attn_implementation = "sdpa"
    return LlamaAttention(config, layer_idx=0)


def test_attention_is_that_of_transformers_and_can_be_copied_and_pickled(monkeypatch, either):
    attention, states, angles = attention_of(), torch.randn(2, 5, 24), torch.randn(2, 5, 8)
    inputs = {"position_embeddings": (angles.cos(), angles.sin()), "attention_mask": None}
    expected, _ = attention(states, **inputs)
    fuse_rotation(attention)
    calls = []
    rotate = training.rotate
    monkeypatch.setattr(training, "rotate", lambda *inputs: calls.append(inputs) or rotate(*inputs))
    for other in (attention, copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):
        assert isinstance(other, LlamaAttention)
        assert type(other) is type(attention)
        torch.testing.assert_close(other(states, **inputs)[0], expected, rtol=1e-5, atol=1e-6)
    assert len(calls) == (6 if either == "C" else 0)


def test_other_layers_keep_their_rotation():
    """Another model of the same class does not change."""
    fuse_rotation(attention_of())
    assert LlamaAttention.forward.__globals__["apply_rotary_pos_emb"] is apply_rotary_pos_emb
    layer = torch.nn.Linear(2, 2)
    fuse_rotation(layer)
    assert type(layer) is torch.nn.Linear


def test_every_attention_of_a_policys_language_model_is_fused():
    layers = PolicySource().load().base.model.language_model.layers
    assert {type(layer.self_attn).forward.__module__ for layer in layers} == {"vr1.policy.rotary"}
