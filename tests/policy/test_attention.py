"""Attention of prompts, and of completions laid end to end, against one masked attention over whole rows."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from vr1.cpu_kernels import completion_attention
from vr1.policy.attention import CompletionAttention, PromptAttention, Scores
from vr1.policy.policy import join_prefixes
from vr1.types import Prefix

HEADS, SHARED, WIDTH, SCALE = 6, 2, 16, 0.3
# Plain, and as in Gemma 2: capped, and with windows that end within the prompt.
SCORES = [Scores(SCALE), Scores(SCALE, cap=0.7), Scores(SCALE, window=3), Scores(SCALE, cap=0.7, window=2)]
PROMPTS = torch.tensor([[False, True, True, True], [True, True, True, True], [False, False, True, True]])


def drawn(batch, length, generator):
    return [
        torch.randn(batch, heads, length, WIDTH, generator=generator, requires_grad=True)
        for heads in (HEADS, SHARED, SHARED)
    ]


def written_out(query, key, value, allowed, cap=None):
    """One attention under a mask ``[B, Q, S]``; ``[B, Q, H, E]``."""
    keys, values = (part.repeat_interleave(HEADS // SHARED, dim=1) for part in (key, value))
    if cap is not None:
        exponentials = (cap * torch.tanh(torch.einsum("bhqe,bhse->bhqs", query, keys) * SCALE / cap)).exp()
        weights = exponentials * allowed[:, None]
        return torch.einsum("bhqs,bhse->bqhe", weights / weights.sum(-1, keepdim=True), values)
    return scaled_dot_product_attention(query, keys, values, attn_mask=allowed[:, None], scale=SCALE).transpose(1, 2)


def prefix_of(keys, values, mask, number=0):
    return Prefix(
        keys=[keys],
        values=[values],
        state=torch.full((len(mask), 3), float(number)),
        mask=mask,
        next_position=mask.sum(1),
    )


each_scores = pytest.mark.parametrize("scores", SCORES, ids=str)


@each_scores
@pytest.mark.parametrize("padded", [False, True])
def test_a_prompt_sees_what_comes_before(padded, scores):
    mask = PROMPTS if padded else torch.ones_like(PROMPTS)
    query, key, value = drawn(3, 4, torch.Generator().manual_seed(0))
    attention = PromptAttention(mask)
    ours = attention(0, query, key, value, scores)
    allowed = torch.ones(4, 4, dtype=torch.bool).tril() & mask[:, None]
    if scores.window is not None:
        allowed = allowed.triu(1 - scores.window)
    expected = written_out(query, key, value, allowed, scores.cap)
    torch.testing.assert_close(ours[mask], expected[mask])
    assert torch.isfinite(ours).all(), "what padding computes goes on into the layers above"
    assert attention.keys[0] is key
    attention(0, query, key + 1, value + 1, scores)
    assert attention.keys[0] is key, "a recomputed layer replaced keys that are in use"


@pytest.fixture
def attended_in_c(monkeypatch):
    """The scaling of each attention that C has computed."""
    calls, attend = [], completion_attention.attend

    def noted(inputs, row, scaling):
        calls.append(scaling)
        return attend(inputs, row, scaling)

    monkeypatch.setattr(completion_attention, "attend", noted)
    return calls


@pytest.mark.parametrize("scores", [*SCORES, Scores(SCALE, window=13), Scores(SCALE, window=12)], ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_each_completion_sees_its_prompt_and_itself_only(ragged_completions, padded, scores, either, attended_in_c):
    _, mask = ragged_completions
    batch = len(mask)
    prompt_mask = PROMPTS if padded else torch.ones_like(PROMPTS)
    generator = torch.Generator().manual_seed(0)
    _, prompt_key, prompt_value = drawn(batch, 4, generator)
    query, key, value = drawn(1, int(mask.sum()), generator)
    attention = CompletionAttention(prefix_of(prompt_key, prompt_value, prompt_mask), mask)
    ours = attention(0, query, key, value, scores)[0]
    # The longest prompt and completion have 13 tokens.
    is_plain = scores.cap is None and scores.window in (None, 13)
    assert attended_in_c == ([SCALE] if is_plain and either == "C" else [])

    # Who sees whom, token by token, over all prompts and completions in one row.
    row, which, place = mask.nonzero(as_tuple=True)
    to_prompts = (row[:, None, None] == torch.arange(batch)[:, None]) & prompt_mask
    same = (row[:, None] == row) & (which[:, None] == which) & (place[:, None] >= place)
    if scores.window is not None:
        # How far back a prompt's token lies: the rest of the prompt, then the completion up to the token itself.
        to_prompts &= (4 - torch.arange(4) + place[:, None, None]) < scores.window
        same &= (place[:, None] - place) < scores.window
    allowed = torch.cat([to_prompts.flatten(1), same], dim=1)[None]
    keys, values = (
        torch.cat([part.transpose(0, 1).flatten(1, 2)[None], own], dim=2)
        for part, own in ((prompt_key, key), (prompt_value, value))
    )
    expected = written_out(query, keys, values, allowed, scores.cap)[0]
    torch.testing.assert_close(ours, expected)
    weights = torch.randn(ours.shape, generator=generator)
    inputs = (query, key, value, prompt_key, prompt_value)
    for got, wanted in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cap", [None, 0.7])
@pytest.mark.parametrize("of_prompts", [True, False], ids=["prompts", "completions"])
def test_dropout_sets_weights_to_zero_and_scales_the_others(cap, of_prompts, either):
    """Values that name their token show the weights of the attention."""
    torch.manual_seed(0)
    query, key, _ = (part.detach() for part in drawn(1, WIDTH // 2, torch.Generator().manual_seed(1)))
    first, second = torch.eye(WIDTH).expand(1, SHARED, -1, -1).split(WIDTH // 2, dim=2)
    seen = torch.ones(1, WIDTH // 2, dtype=torch.bool)

    def weights(dropout):
        scores = Scores(SCALE, cap=cap, dropout=dropout)
        if of_prompts:
            return PromptAttention(seen)(0, query, key, first, scores)
        return CompletionAttention(prefix_of(key, first, seen), seen[:, None])(0, query, key, second, scores)

    whole, dropped = weights(0.0), [weights(0.25) for _ in range(50)]
    torch.testing.assert_close(whole.sum(-1), torch.ones(whole.shape[:-1]))
    for some in dropped:
        torch.testing.assert_close(some, torch.where(some == 0, 0.0, whole / 0.75))
    zeros = torch.stack([some[whole > 0] == 0 for some in dropped]).float()
    assert 0.2 < zeros.mean() < 0.3


def test_prefixes_of_several_forwards_join_in_the_order_of_their_prompts():
    generator = torch.Generator().manual_seed(0)
    long, short = (drawn(batch, length, generator)[1:] for batch, length in ((1, 5), (2, 3)))
    first = prefix_of(*long, torch.ones(1, 5, dtype=torch.bool), 1)
    second = prefix_of(*short, torch.tensor([[True, True, True], [False, True, True]]), 2)
    both = join_prefixes([second, first], [torch.tensor([0, 2]), torch.tensor([1])])
    assert both.state[:, 0].tolist() == [2, 1, 2]
    assert both.mask.long().tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert both.next_position.tolist() == [3, 5, 2]
    for ours, (one, two) in zip((both.keys[0], both.values[0]), zip(long, short, strict=True), strict=True):
        torch.testing.assert_close(ours[1], one[0])
        torch.testing.assert_close(ours[[0, 2], :, 2:], two)
    assert join_prefixes([first], [torch.tensor([0])]) is first


@pytest.mark.parametrize("rows", [[[2], [0], [1]], [[1], [2], [0]], [[3, 1], [0], [2]], [[2, 3], [0, 1]]], ids=str)
def test_prefixes_join_in_any_order(rows):
    """Each prompt's values name it."""

    def named(numbers):
        values = torch.tensor(numbers, dtype=torch.float32)
        part = values[:, None, None, None].expand(-1, SHARED, 3, WIDTH)
        prefix = prefix_of(part, part, torch.ones(len(numbers), 3, dtype=torch.bool))
        return replace(prefix, state=values[:, None], next_position=values.long())

    joined = join_prefixes([named(numbers) for numbers in rows], [torch.tensor(numbers) for numbers in rows])
    expected = list(range(len(joined.mask)))
    assert joined.state[:, 0].tolist() == joined.next_position.tolist() == expected
    assert joined.keys[0][:, 0, 0, 0].tolist() == joined.values[0][:, 0, 0, 0].tolist() == expected
