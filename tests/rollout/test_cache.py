"""Attention over a prompt that is stored once against one over whole rows, while rows finish."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from vr1.policy.attention import Scores, capped_attention
from vr1.rollout.cache import GroupCache, StaticGroupCache
from vr1.types import Prefix

GROUP, HEADS, SHARED, WIDTH = 3, 6, 2, 8


# Plain, and as in Gemma 2: capped, and with windows that leave the prompt, and then the first own tokens, behind.
SCORES = [Scores(0.3), Scores(0.3, cap=0.7), Scores(0.3, window=3), Scores(0.3, cap=0.7, window=30)]


@pytest.mark.parametrize("scores", SCORES, ids=str)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", [GroupCache, StaticGroupCache])
def test_equals_attention_over_whole_rows(kind, padded, scores):
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, WIDTH, generator=generator)

    mask = torch.ones(3, 4, dtype=torch.bool)
    if padded:
        mask[0, 0] = mask[2, :2] = False
    prompt_keys, prompt_values = drawn(3, SHARED, 4), drawn(3, SHARED, 4)
    prefix = Prefix(
        keys=[prompt_keys],
        values=[prompt_values],
        state=torch.zeros(3, 1),
        mask=mask,
        next_position=torch.zeros(3, dtype=torch.long),
    )
    cache = kind(prefix, GROUP)
    rows = torch.arange(3 * GROUP)
    # After some tokens: a gap in a group, a prompt without any row, one row alone.
    leaving = {10: [0, 2, 3, 6, 7], 20: [1, 3, 4], 40: [2]}
    stored = []
    for step in range(70):
        key, value, query = drawn(len(rows), SHARED, 1), drawn(len(rows), SHARED, 1), drawn(len(rows), HEADS, 1)
        stored.append((key, value))
        ours = cache(0, query, key, value, scores)
        of_prompt = (prompt_keys[rows // GROUP], prompt_values[rows // GROUP])
        keys, values = (
            torch.cat([before, *parts], dim=2).repeat_interleave(HEADS // SHARED, dim=1)
            for before, parts in zip(of_prompt, zip(*stored, strict=True), strict=True)
        )
        allowed = torch.cat([mask[rows // GROUP], torch.ones(len(rows), step + 1, dtype=torch.bool)], dim=1)
        if scores.window is not None:
            allowed[:, : -scores.window] = False
        allowed = allowed[:, None, None]
        if scores.cap is None:
            whole = scaled_dot_product_attention(query, keys, values, attn_mask=allowed, scale=0.3)
        else:
            whole = capped_attention(query, keys, values, allowed, 0.3, scores.cap)
        torch.testing.assert_close(ours, whole.transpose(1, 2), atol=1e-5, rtol=1e-4)
        if step in leaving:
            kept = torch.tensor(leaving[step])
            cache.select(kept)
            rows, stored = rows[kept], [(key[kept], value[kept]) for key, value in stored]
    assert len(cache.prompt_keys[0]) == SHARED, "prompts whose completions have all ended are still there"
