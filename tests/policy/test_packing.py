import torch
from torch.nn.functional import scaled_dot_product_attention

from vr1.policy.attention import PackedAttention
from vr1.policy.packing import PackedRows, pack


def seen(rows: PackedRows):
    """``[B, L, L]``: who sees whom, written down token by token."""
    batch, length = rows.tokens.shape
    allowed = torch.zeros(batch, length, length, dtype=torch.bool)
    for b in range(batch):
        for q in range(length):
            for k in range(q + 1):
                allowed[b, q, k] = rows.segments[b, k] in (0, rows.segments[b, q])
    return allowed


def test_each_completion_sees_the_prompt_and_itself_only(ragged_completions):
    tokens, mask = ragged_completions
    prompt_mask = torch.tensor([[False, True, True, True], [True, True, True, True], [False, False, True, True]])
    prompt_tokens = torch.arange(12).reshape(3, 4) + 500
    rows = pack(prompt_tokens, prompt_mask, tokens, mask)
    allowed, real = seen(rows), rows.segments >= 0
    shape = (*rows.tokens.shape, 8)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(shape[0], heads, *shape[1:], generator=generator, requires_grad=True) for heads in (6, 2, 2)
    )
    ours = PackedAttention(rows)(0, query, key, value, scaling=0.3)
    keys, values = (part.repeat_interleave(3, dim=1) for part in (key, value))
    masked = scaled_dot_product_attention(query, keys, values, attn_mask=allowed[:, None], scale=0.3).transpose(1, 2)
    torch.testing.assert_close(ours[real], masked[real])
    weights = torch.randn(ours.shape, generator=generator) * real[..., None, None]
    inputs = (query, key, value)
    for got, expected in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((masked * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_no_completion_counts(ragged_completions):
    tokens, mask = ragged_completions
    prompt_mask = torch.ones(3, 4, dtype=torch.bool)
    rows = pack(torch.ones(3, 4, dtype=torch.long), prompt_mask, tokens, torch.zeros_like(mask))
    parts = (torch.randn(3, heads, 4, 8) for heads in (4, 2, 2))
    assert PackedAttention(rows)(0, *parts, scaling=1.0).shape == (3, 4, 4, 8)


def test_scored_tokens_come_in_the_order_of_the_mask(ragged_completions):
    tokens, mask = ragged_completions
    prompt_mask = torch.ones(3, 2, dtype=torch.bool)
    rows = pack(torch.full((3, 2), 999), prompt_mask, tokens, mask)
    for target, row, column, offset in zip(
        tokens[mask], rows.rows, rows.columns, torch.arange(9).expand_as(mask)[mask], strict=True
    ):
        if offset == 0:
            assert column == 1, "the first token follows the prompt's last"
        else:
            assert rows.tokens[row, column + 1] == target
