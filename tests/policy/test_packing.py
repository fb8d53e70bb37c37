import torch

from vr1.policy.packing import pack


def test_each_completion_sees_the_prompt_and_itself_only(ragged_completions):
    tokens, mask = ragged_completions
    prompt_mask = torch.tensor([[False, True, True, True], [True, True, True, True], [False, False, True, True]])
    prompt_tokens = torch.arange(12).reshape(3, 4) + 500
    rows = pack(prompt_tokens, prompt_mask, tokens, mask)
    allowed = rows.attention()[:, 0]
    for b in range(3):
        length = int(prompt_mask[b].sum() + mask[b].sum())
        assert (rows.segments[b, length:] == -1).all()
        for q in range(length):
            seen = {k for k in range(q + 1) if rows.segments[b, k] in (0, rows.segments[b, q])}
            assert set(allowed[b, q].nonzero()[:, 0].tolist()) == seen
    assert allowed.any(-1).all(), "a query without any key makes its softmax NaN"


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
