"""RMS norms of `vr1.policy.norms` against the formula in float64, and against transformers' own."""

import copy
import pickle

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

from vr1.policy import PolicySource
from vr1.policy.norms import RMS_NORMS, fuse_norm

pytestmark = pytest.mark.usefixtures("either")


def norm_of(kind=LlamaRMSNorm, width=24, dtype=torch.float32):
    norm = kind(width, eps=1e-3).to(dtype)
    torch.nn.init.normal_(norm.weight)
    return norm


def results_of(norm, states, direction):
    """Output, gradient of the states, gradient of the weight."""
    states = states.detach().requires_grad_()
    output = norm(states)
    return output.detach(), *torch.autograd.grad(output, [states, norm.weight], direction)


def formula(states, weight, epsilon):
    return weight * states / (states.square().mean(-1, keepdim=True) + epsilon).sqrt()


# The widths are multiples of a vector's 8 values, and not; the last shapes have several threads and blocks of rows.
@pytest.mark.parametrize(
    "shape",
    [(24,), (5, 24), (2, 3, 24), (2, 3, 4, 24), (3, 7), (1, 1), (1, 21), (32, 513), (33, 600), (3, 50, 115)],
    ids=str,
)
def test_value_and_gradients_are_those_of_the_formula(shape):
    norm, states = norm_of(width=shape[-1]), torch.randn(shape, requires_grad=True)
    exact_states, exact_weight = (part.detach().double().requires_grad_() for part in (states, norm.weight))
    fuse_norm(norm)
    direction = torch.randn(shape)
    expected = formula(exact_states, exact_weight, 1e-3)
    found = norm(states)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    (expected * direction.double()).sum().backward()
    (found * direction).sum().backward()
    torch.testing.assert_close(states.grad, exact_states.grad.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.weight.grad, exact_weight.grad.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3VLTextRMSNorm])
def test_bfloat16_is_nearer_to_the_formula_than_transformers(kind):
    norm, states = norm_of(kind, 64, torch.bfloat16), torch.randn(100, 64, dtype=torch.bfloat16)
    exact = formula(states.double(), norm.weight.double(), 1e-3)
    before = (norm(states).double() - exact).abs().mean()
    fuse_norm(norm)
    found = norm(states)
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).abs().mean() < before


def test_gradients_of_bfloat16_have_its_precision():
    norm, states = norm_of(dtype=torch.bfloat16), torch.randn(4, 24, dtype=torch.bfloat16, requires_grad=True)
    fuse_norm(norm)
    norm(states).sum().backward()
    assert states.grad.dtype == norm.weight.grad.dtype == torch.bfloat16


def test_nothing_is_computed_for_what_is_not_trained():
    norm, states = norm_of(), torch.randn(4, 24, requires_grad=True)
    norm.requires_grad_(False)
    fuse_norm(norm)
    norm(states).sum().backward()
    assert norm.weight.grad is None
    assert states.grad is not None
    with torch.no_grad():
        assert not norm(states).requires_grad


def test_only_the_input_and_a_number_a_token_are_stored():
    norm, states = norm_of(dtype=torch.bfloat16), torch.randn(4, 24, dtype=torch.bfloat16, requires_grad=True)
    fuse_norm(norm)
    stored = []
    with torch.autograd.graph.saved_tensors_hooks(lambda part: stored.append(part) or part, lambda part: part):
        norm(states)
    assert sorted(part.numel() for part in stored) == [4, 24, 4 * 24]
    # Not a copy in float32.
    assert {part.data_ptr() for part in stored} >= {states.data_ptr(), norm.weight.data_ptr()}


def test_states_of_zeros_have_a_finite_gradient():
    norm, states = norm_of(), torch.zeros(2, 24, requires_grad=True)
    fuse_norm(norm)
    norm(states).sum().backward()
    torch.testing.assert_close(states.grad, (norm.weight / 1e-3**0.5).expand(2, 24).detach())


def test_class_keeps_its_name_and_can_be_copied_and_pickled():
    norm = norm_of()
    fuse_norm(norm)
    assert isinstance(norm, LlamaRMSNorm)
    assert type(norm).__name__ == "LlamaRMSNorm"
    other = copy.deepcopy(norm)
    states = torch.randn(3, 24)
    assert torch.equal(other(states), norm(states))
    read = pickle.loads(pickle.dumps(norm))
    assert torch.equal(read(states), norm(states))
    assert type(read) is type(other) is type(norm)
    fuse_norm(norm)
    assert type(read) is type(norm)
    second = norm_of()
    fuse_norm(second)
    assert type(second) is type(norm)


def test_every_norm_of_a_policy_is_fused():
    policy = PolicySource().load()
    norms = [part for part in policy.modules() if type(part).__name__ in RMS_NORMS]
    assert norms
    assert {type(part).forward.__module__ for part in norms} == {"vr1.policy.norms"}


def test_backward_under_autocast_is_not_rounded():
    norm, states = norm_of(), torch.randn(6, 24, requires_grad=True)
    fuse_norm(norm)
    gradients = []
    for mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            gradients.append(torch.autograd.grad(norm(states).square().sum(), states)[0])
    assert torch.equal(*gradients)


def test_copy_of_a_compiled_norm_has_its_own_weights():
    norm, states = norm_of(), torch.ones(2, 24)
    fuse_norm(norm)
    norm.compile(backend="eager")
    other = copy.deepcopy(norm)
    other.weight.data.zero_()
    assert not other(states).any()
    assert norm(states).any()


def test_threads_do_not_change_a_result(either):
    norm, states, direction = norm_of(width=515), torch.randn(150, 515), torch.randn(150, 515)
    fuse_norm(norm)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(results_of(norm, states, direction))
    finally:
        torch.set_num_threads(before)
    if either == "C":
        assert all(map(torch.equal, *results))
    torch.testing.assert_close(*results)


def test_states_and_gradients_that_are_not_contiguous():
    norm = norm_of(width=13)
    states, direction = torch.randn(13, 5, 2).permute(2, 1, 0), torch.randn(1, 1, 13).expand(2, 5, 13)
    expected = results_of(norm, states, direction)
    fuse_norm(norm)
    torch.testing.assert_close(results_of(norm, states, direction), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("place", [0, 9])
@pytest.mark.parametrize("of_gradient", [False, True])
def test_values_that_are_no_numbers_come_out_as_torchs(special, place, of_gradient):
    norm, states, direction = norm_of(width=10), torch.randn(3, 10), torch.randn(3, 10)
    (direction if of_gradient else states)[1, place] = special
    expected = results_of(norm, states, direction)
    fuse_norm(norm)
    found = results_of(norm, states, direction)
    torch.testing.assert_close(found[0], expected[0], equal_nan=True)
    # Other rows do not see it.
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours[[0, 2]], theirs[[0, 2]], rtol=1e-5, atol=1e-5)
    if not torch.isfinite(torch.tensor(special)):
        assert not found[1][1].isfinite().all()
        assert not found[2][place].isfinite()


def test_states_whose_gradient_nobody_needs():
    norm, states = norm_of(), torch.randn(40, 24)
    expected = torch.autograd.grad(norm(states).square().sum(), norm.weight)
    fuse_norm(norm)
    torch.testing.assert_close(
        torch.autograd.grad(norm(states).square().sum(), norm.weight), expected, rtol=1e-4, atol=1e-4
    )
