"""The kernels of a decoding step against plain formulas in float64."""

import pytest
import torch
from torch.nn.functional import silu

from vr1.cpu_kernels import decoding
from vr1.rollout.sampling import Sampling, sample_token


@pytest.fixture(params=[1, 3], ids=lambda count: f"{count} threads")
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [1, 7, 8, 9, 384])
def test_norm(width):
    # In the smallest rows the epsilon decides.
    states = drawn(5, width) * torch.tensor([1e-4, 1e-2, 1.0, 100.0, 0.0])[:, None]
    weight = drawn(width, seed=1)
    wide = states.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    torch.testing.assert_close(decoding.rms_norm(states, weight, 1e-6).double(), expected, atol=1e-7, rtol=1e-6)
    states[1, -1] = torch.nan
    assert decoding.rms_norm(states, weight, 1e-6).isnan().all(1).tolist() == [False, True, False, False, False]


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (2, 9), (3, 8), (16, 1920)])
def test_gate(threads, rows, width):
    both = drawn(rows, 2 * width + 3) * 10
    gate, up = both[:, :width], both[:, width + 3 :]
    expected = silu(gate.double()) * up.double()
    torch.testing.assert_close(decoding.gated(gate, up).double(), expected, atol=1e-6, rtol=1e-6)


def test_results_have_the_precision_of_the_inputs_whatever_the_default():
    """A trainer may set another default, in which a buffer would be too small."""
    both, prompt, own = drawn(2, 3, 16), drawn(1, 16, 16), torch.zeros(2, 16, 16)
    rows, none = torch.arange(2), torch.zeros(1, dtype=torch.long)

    def results():
        keys, values = own.clone(), own.clone()
        attended = decoding.attend(
            both, both[:, 0].contiguous(), both[:, 1].contiguous(), prompt, prompt, none, rows, keys, values, 0, 1.0
        )
        sampled = decoding.sample(both[:, 0].contiguous(), torch.full((2,), 0.3, dtype=torch.float64), 1.0)
        return [attended, *sampled, decoding.gated(both[:, 0], both[:, 1])]

    expected = results()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = results()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_gate_of_extreme_values():
    gate = torch.tensor([[-1e30, -1000.0, -88.5, -87.5, -50.0, 0.0, 50.0, 88.5, 1000.0, 1e30, torch.inf, torch.nan]])
    found = decoding.gated(gate, torch.ones_like(gate))
    torch.testing.assert_close(found, silu(gate), atol=1e-6, rtol=1e-6, equal_nan=True)


def attended(heads, cosine, sine, keys, values, starts, row_of_slot, own_keys, own_values, scaling):
    """The attention of each row in float64, and its rotated key; own keys and values without the new token."""
    rows, total, width = heads.shape
    pairs, slots = len(keys), len(row_of_slot) // len(starts)
    kv_heads = pairs // len(starts)
    queries = total - 2 * kv_heads
    heads, cosine, sine, keys, values, own_keys, own_values = (
        part.double() for part in (heads, cosine, sine, keys, values, own_keys, own_values)
    )

    def rotated(part, row):
        return part * cosine[row] + torch.cat([part[width // 2 :], part[: width // 2]]) * sine[row]

    result, new_keys = torch.zeros(rows, queries, width).double(), {}
    for place, row in enumerate(row_of_slot.tolist()):
        if row < 0:
            continue
        prompt, slot = divmod(place, slots)
        for head in range(queries):
            kv_head = head * kv_heads // queries
            pair = prompt * kv_heads + kv_head
            sequence = pair * slots + slot
            new_keys[sequence] = rotated(heads[row, queries + kv_head], row)
            seen = torch.cat([keys[pair, :, starts[prompt] :].T, own_keys[sequence].T, new_keys[sequence][None]])
            read = torch.cat(
                [values[pair, starts[prompt] :], own_values[sequence], heads[row, queries + kv_heads + kv_head][None]]
            )
            result[row, head] = torch.softmax(seen @ rotated(heads[row, head], row) * scaling, 0) @ read
    return result.flatten(1), new_keys


# Query heads, key heads, width, prompt tokens, padding of each prompt, rows of the slots, own tokens before, scale.
CASES = {
    "groups": (6, 2, 64, 37, [0, 5], [0, 1, 2, 3, -1, 4], 20, 1),
    "a whole block of keys": (4, 4, 16, 32, [0, 16], [0, 1], 15, 1),
    "seven queries to a key": (7, 1, 48, 5, [4], list(range(9)), 0, 1),
    "many slots": (2, 1, 32, 100, [99, 1], [*range(40), *range(40, 60), *[-1] * 20], 31, 1),
    "large scores": (4, 2, 16, 40, [3], [1, 0], 9, 300),
    "wide heads": (5, 5, 128, 17, [0, 1, 2], [2, -1, 0, -1, 1, -1], 3, 1),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_attention(threads, case):
    heads, kv_heads, width, length, starts, row_of_slot, before, size = case
    prompts, rows, slots = len(starts), max(row_of_slot) + 1, len(row_of_slot) // len(starts)
    capacity = -(-(before + 1) // 16) * 16
    new, cosine, sine = drawn(rows, heads + 2 * kv_heads, width), drawn(rows, width, seed=1), drawn(rows, width, seed=2)
    values = drawn(prompts * kv_heads, length, width, seed=3)
    keys = torch.full((prompts * kv_heads, width, decoding.padded(length)), torch.nan)
    keys[..., :length] = drawn(prompts * kv_heads, width, length, seed=4) * size
    # What is not stored yet, or is padding, may be anything.
    own_keys = torch.full((prompts * kv_heads * slots, width, capacity), torch.nan)
    own_values = torch.full((prompts * kv_heads * slots, capacity, width), torch.nan)
    own_keys[..., :before] = drawn(len(own_keys), width, before, seed=5) * size
    own_values[:, :before] = drawn(len(own_keys), before, width, seed=6)
    for pair in range(prompts * kv_heads):
        padding = starts[pair // kv_heads]
        keys[pair, :, :padding] = values[pair, :padding] = torch.nan
    expected, new_keys = attended(
        new, cosine, sine, keys[..., :length], values, starts, torch.tensor(row_of_slot),
        own_keys[..., :before], own_values[:, :before], 0.3,
    )  # fmt: skip
    found = decoding.attend(
        new,
        cosine,
        sine,
        keys,
        values,
        torch.tensor(starts),
        torch.tensor(row_of_slot),
        own_keys,
        own_values,
        before,
        0.3,
    )
    torch.testing.assert_close(found.double(), expected, atol=1e-5 * size, rtol=1e-5)
    for sequence in range(len(own_keys)):
        row = row_of_slot[sequence // slots // kv_heads * slots + sequence % slots]
        if row < 0:
            assert own_keys[sequence, :, before:].isnan().all()
            continue
        torch.testing.assert_close(own_keys[sequence, :, before].double(), new_keys[sequence], atol=1e-6, rtol=1e-6)
        value = new[row, heads + kv_heads + sequence // slots % kv_heads]
        assert torch.equal(own_values[sequence, before], value)
        assert own_keys[sequence, :, before + 1 :].isnan().all()


def test_layouts_that_it_does_not_read_are_refused():
    ones, no_tokens = torch.ones(1, 3, 16), torch.zeros(1, dtype=torch.long)
    with pytest.raises(AssertionError):
        decoding.attend(
            ones, ones[:, 0], ones[:, 0], torch.ones(1, 16, 16).transpose(1, 2)[:, :, ::2], torch.ones(1, 5, 16),
            no_tokens, no_tokens, torch.ones(1, 16, 16), torch.ones(1, 16, 16), 0, 1.0,
        )  # fmt: skip


@pytest.mark.parametrize("size", [1, 7, 256, 257, 4099])
@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_tokens_are_those_of_torch(threads, size, temperature):
    logits = drawn(300, size) * 3
    logits[:, drawn(size, seed=1) > 1] = -torch.inf
    logits[:, size // 2] = 0
    uniform = torch.rand(300, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = sample_token(logits, Sampling(temperature=temperature), uniform)
    found = decoding.sample(logits, uniform, temperature)
    # Where a number is within rounding of the boundary of two tokens, either is right.
    assert (found[0] != expected[0]).sum() <= (1 if size > 1000 else 0)
    same = found[0] == expected[0]
    torch.testing.assert_close(found[1][same], expected[1][same], atol=1e-5, rtol=1e-5)


def test_tokens_at_the_ends_of_the_distribution():
    logits = torch.full((4, 600), -torch.inf)
    logits[:, 100], logits[:, 400] = 0, 0
    logits[2, 400] = -200
    logits[3, 100] = -200
    first, last = torch.zeros(4).double(), torch.full((4,), 1 - 2**-53).double()
    assert decoding.sample(logits, first, 1.0)[0].tolist() == [100, 100, 100, 400]
    tokens, log_probs = decoding.sample(logits, last, 1.0)
    assert tokens.tolist() == [400, 400, 100, 400]
    torch.testing.assert_close(log_probs.exp(), torch.tensor([0.5, 0.5, 1, 1]))


def test_logits_without_a_distribution():
    logits = drawn(5, 20)
    logits[1, 5], logits[2, 17], logits[3], logits[4, 3] = torch.nan, torch.nan, -torch.inf, torch.inf
    tokens, log_probs = decoding.sample(logits, torch.full((5,), 0.5).double(), 1.0)
    assert tokens[1:].tolist() == [0, 0, 0, 0]
    assert log_probs.isnan().tolist() == [False, True, True, True, True]


def test_frequencies_are_the_probabilities():
    logits = drawn(1, 300) * 2
    uniform = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    tokens, _ = decoding.sample(logits.expand(100_000, -1).contiguous(), uniform, 0.7)
    counts = torch.bincount(tokens, minlength=300) / 100_000
    assert (counts - torch.softmax(logits[0].double() / 0.7, 0)).abs().max() < 2e-5
