"""Log-probs in chunks: values, gradients, and how often the head is computed."""

from dataclasses import replace

import pytest
import torch

from vr1.policy import Lora, logprobs
from vr1.policy.logprobs import token_log_probs

pytestmark = pytest.mark.usefixtures("either")


class Head:
    """A linear head that counts its calls."""

    def __init__(self, weight):
        self.weight, self.calls = weight, 0

    def __call__(self, states):
        self.calls += 1
        return states.float() @ self.weight.float().T


def computed(monkeypatch, fixed, *, trained=False, temperature=1.0, entropy_gradient=False, dtype=torch.float32):
    """Log-probs, entropies, gradients and calls of a head of 50 tokens, of 10 states in chunks of 4."""
    monkeypatch.setattr(logprobs, "CHUNK", 4)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 8, generator=generator).to(dtype).requires_grad_(trained)
    states = (3 * torch.randn(10, 8, generator=generator)).to(dtype).requires_grad_()
    targets = torch.randint(50, (10,), generator=generator)
    head = Head(weight)
    values, entropies = token_log_probs(head, states, targets, temperature, entropy_gradient, fixed)
    loss = (values * torch.linspace(-1, 2, 10)).sum() + (entropies.sum() if entropy_gradient else 0)
    loss.backward()
    return values, entropies, states.grad, weight.grad, head.calls, (states, targets, weight)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_head_that_is_not_trained_is_computed_once(monkeypatch, temperature):
    values, entropies, gradient, _, calls, (states, targets, weight) = computed(
        monkeypatch, True, temperature=temperature
    )
    assert calls == 3
    plain = states.detach().double().requires_grad_()
    logits = torch.log_softmax(plain @ weight.double().T / temperature, -1)
    expected = logits[torch.arange(10), targets]
    (expected * torch.linspace(-1, 2, 10)).sum().backward()
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropies.double(), -(logits.exp() * logits).sum(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), plain.grad, rtol=1e-5, atol=1e-5)
    assert not entropies.requires_grad


@pytest.mark.parametrize("settings", [{}, {"trained": True}, {"entropy_gradient": True}], ids=str)
def test_backward_computes_other_heads_again_but_for_the_last_chunk(monkeypatch, settings):
    fixed = "entropy_gradient" in settings
    *found, calls, _ = computed(monkeypatch, fixed, **settings)
    assert calls == 5
    if not settings:
        for ours, others in zip(found, computed(monkeypatch, True)[:4], strict=True):
            torch.testing.assert_close(ours, others, rtol=1e-5, atol=1e-6)


def test_gradients_have_the_precision_of_the_states(monkeypatch):
    _, _, half, _, _, _ = computed(monkeypatch, True, dtype=torch.bfloat16)
    _, _, again, _, _, _ = computed(monkeypatch, False, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, again, rtol=2**-7, atol=1e-3)


def test_no_gradient_is_computed_where_none_is_asked_for(monkeypatch):
    head = Head(torch.randn(50, 8))
    monkeypatch.setattr(torch.autograd, "grad", lambda *_: pytest.fail("a gradient"))
    with torch.no_grad():
        values, _ = token_log_probs(head, torch.randn(5, 8, requires_grad=True), torch.arange(5), 1.0, fixed_head=True)
    token_log_probs(head, torch.randn(5, 8), torch.arange(5), 1.0, fixed_head=True)
    assert values.shape == (5,)


@pytest.mark.parametrize(("temperature", "entropy_gradient"), [(1.0, False), (0.7, False), (0.7, True)])
def test_gradients_of_a_head_that_is_trained(monkeypatch, temperature, entropy_gradient):
    values, entropies, of_states, of_weight, _, (states, targets, weight) = computed(
        monkeypatch, False, trained=True, temperature=temperature, entropy_gradient=entropy_gradient
    )
    plain, head = (part.detach().double().requires_grad_() for part in (states, weight))
    logits = torch.log_softmax(plain @ head.T / temperature, -1)
    expected, spread = logits[torch.arange(10), targets], -(logits.exp() * logits).sum(-1)
    ((expected * torch.linspace(-1, 2, 10)).sum() + (spread.sum() if entropy_gradient else 0)).backward()
    for found, wanted in ((values, expected), (entropies, spread), (of_states, plain.grad), (of_weight, head.grad)):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize(("adapters", "calls"), [({}, 5), ({"lora": Lora(rank=2)}, 3)], ids=["whole", "lora"])
def test_policies_know_whether_their_head_is_trained(source, prompts, ragged_completions, monkeypatch, adapters, calls):
    monkeypatch.setattr(logprobs, "CHUNK", -(-int(ragged_completions[1].sum()) // 3))
    policy, seen = replace(source, **adapters).load(), []
    policy.base.lm_head.register_forward_hook(lambda *_: seen.append(1))
    policy.log_probs(prompts, *ragged_completions)[0].sum().backward()
    assert len(seen) == calls


# The last shapes have several threads, blocks of 4096 logits, and an end that fills no vector.
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 8), (5, 4096), (9, 4103), (3, 9001)], ids=str)
@pytest.mark.parametrize("fixed", [False, True])
def test_value_and_gradient_are_those_of_torch_in_float64(shape, fixed):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(shape, generator=generator) * 9 + 40).requires_grad_()
    targets = torch.randint(shape[1], shape[:1], generator=generator)
    direction = torch.randn(shape[:1], generator=generator)
    values, entropies = token_log_probs(lambda states: states, logits, targets, 1.0, fixed_head=fixed)
    exact = logits.detach().double().requires_grad_()
    log_probs = exact.log_softmax(-1)
    expected = log_probs.gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(values.double(), expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(entropies.double(), -(log_probs.exp() * log_probs).sum(-1), rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(values, logits, direction)[0]
    torch.testing.assert_close(
        found.double(), torch.autograd.grad(expected, exact, direction.double())[0], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf"), 3e38, -3e38])
@pytest.mark.parametrize("place", [0, 9, slice(None)], ids=str)
def test_extreme_logits_come_out_as_torchs(special, place):
    logits, targets = torch.randn(3, 10), torch.tensor([2, 9, 4])
    logits[1, place] = special
    values, _ = token_log_probs(lambda states: states, logits.requires_grad_(), targets, 1.0)
    expected = logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    found, theirs = (torch.autograd.grad(part.sum(), logits)[0] for part in (values, expected))
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_threads_do_not_change_a_result():
    logits, targets = torch.randn(40, 1001, requires_grad=True), torch.arange(40)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            values, entropies = token_log_probs(lambda states: states, logits, targets, 1.0)
            results.append([values, entropies, torch.autograd.grad(values.sum(), logits)[0]])
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


def test_a_target_outside_of_the_vocabulary_is_refused():
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        token_log_probs(lambda states: states, torch.randn(2, 5), torch.tensor([1, 5]), 1.0)
