"""Sampling against the cumulative distribution in float64."""

import numpy as np
import pytest
import torch

from vr1.commands.plan.live_bytes import LiveBytes
from vr1.rollout import Sampling, sample_token
from vr1.rollout.sampling import sampling_bytes


@pytest.mark.parametrize("size", [3, 255, 256, 257, 810, 70_000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_inverts_the_cumulative_distribution(size, temperature):
    generator = torch.Generator().manual_seed(size)
    logits = 3 * torch.randn(200, size, generator=generator)
    logits[:, 1] = -torch.inf
    uniform = torch.rand(200, generator=generator, dtype=torch.float64)
    found = sample_token(logits, Sampling(temperature=temperature), uniform)[0].numpy()
    scaled = logits.double().numpy() / temperature
    weights = np.exp(scaled - scaled.max(1, keepdims=True))
    sums = weights.cumsum(1)
    expected = (sums <= uniform.numpy()[:, None] * sums[:, -1:]).sum(1)
    # float32 probabilities move an edge between two tokens by about 1e-7.
    assert (found == expected).mean() > 0.99
    assert not (found == 1).any()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_ends_of_the_interval_have_positive_probability(uniform):
    logits = torch.full((1, 1000), -torch.inf)
    logits[0, [300, 301, 700]] = torch.tensor([0.0, -80.0, 1.0])
    found = sample_token(logits, Sampling(), torch.tensor([uniform], dtype=torch.float64))[0]
    assert found.tolist() == [300 if uniform == 0 else 700]


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[[2, 0, 3, 1]].expand(1001, -1)
    uniform = torch.linspace(0, 1 - 1e-9, 1001, dtype=torch.float64)
    counts = {
        top_p: sample_token(logits, Sampling(top_p=top_p), uniform)[0].bincount(minlength=4).tolist()
        for top_p in (0.4, 0.79, 0.9, 1.0)
    }
    assert counts[0.4] == [0, 1001, 0, 0]
    assert counts[0.79] == pytest.approx([0, 626, 0, 375], abs=2)
    assert counts[0.9] == pytest.approx([158, 527, 0, 316], abs=2)
    assert counts[1.0] == pytest.approx([150, 501, 50, 300], abs=2)


@pytest.mark.parametrize("size", [4, 10, 100])
@pytest.mark.parametrize("kept", [1, 2, 3, 4])
def test_a_sum_that_equals_top_p_is_enough(size, kept):
    """Of equally likely tokens, exactly as many are kept as reach top-p: the first of them."""
    uniform = torch.linspace(0, 1 - 1e-9, 1000, dtype=torch.float64)
    found, _ = sample_token(torch.zeros(1000, size), Sampling(top_p=kept / size), uniform)
    assert found.unique().tolist() == list(range(kept))


def test_valid_where_deterministic_algorithms_are_required():
    torch.use_deterministic_algorithms(True)
    try:
        logits = torch.randn(3, 500)
        for sampling in (Sampling(), Sampling(top_p=0.5), Sampling(temperature=0.0)):
            assert sample_token(logits, sampling, torch.rand(3))[0].shape == (3,)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("vocabulary", [151_936, 256_000])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_memory_of_sampling_is_what_it_allocates(vocabulary, temperature, top_p):
    sampling = Sampling(temperature=temperature, top_p=top_p)

    def sample():
        logits = torch.empty(16, vocabulary, device="meta")
        sample_token(logits, sampling, torch.empty(16, dtype=torch.float64, device="meta"))

    # The first call makes the triangles, which are kept.
    sample()
    with torch.no_grad(), LiveBytes() as live:
        sample()
    assert live.peak == pytest.approx(sampling_bytes(16, vocabulary, sampling), rel=0.03)
