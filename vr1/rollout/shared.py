"""Decoding with the image and the prompt computed once per group.

Shape letters: B prompts, G group size, C completion tokens, A axes of the rotary positions, R rows still running,
V vocabulary.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from vr1.policy.model import Policy
from vr1.prompts import PromptBatch
from vr1.rollout.choose import choose
from vr1.rollout.settings import Sampling

# The cache is rebuilt without the finished rows when no more than this share of its rows is still running: rebuilding
# copies the cache once, and every later step is cheaper for it.
_COMPACT_BELOW = 0.75


@dataclass(slots=True)
class _Rows:
    """The rows still in the cache: which row of the result each one is, and where it stands."""

    index: Tensor
    attention: Tensor
    position: Tensor


def decode_shared(
    policy: Policy, prompts: PromptBatch, sampling: Sampling, chances: Tensor
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Sample G completions of each of B prompts.

    Args:
        policy: a policy that shares prompts.
        prompts: B prompts.
        sampling: group size, temperature, top-p and length limit.
        chances: ``[B * G, limit]`` uniform numbers in [0, 1).

    Returns:
        Tokens ``[B * G, C]`` int64, their lengths ``[B * G]`` int64, which are finished ``[B * G]`` bool, and the
        seconds that the prompts took.
    """
    started = time.perf_counter()
    batch, group, limit = len(prompts), sampling.group_size, sampling.max_new_tokens
    device = prompts.tokens.device
    logits, cache, rows, axes = _prefill(policy, prompts, group)
    prefill = time.perf_counter() - started
    forbidden = torch.tensor(policy.forbidden_tokens, device=device)
    ends = torch.tensor(policy.eos_tokens, device=device)
    tokens = torch.full((batch * group, limit), int(ends[0]), device=device)
    lengths = torch.full((batch * group,), limit, device=device)
    finished = torch.zeros(batch * group, dtype=torch.bool, device=device)
    steps = 0
    for step in range(limit):
        steps = step + 1
        logits[:, forbidden] = -torch.inf
        chosen = choose(logits, sampling, chances[rows.index, step])
        running = ~finished[rows.index]
        tokens[rows.index[running], step] = chosen[running]
        ended = running & torch.isin(chosen, ends)
        finished[rows.index[ended]] = True
        lengths[rows.index[ended]] = steps
        keep = (running & ~ended).nonzero()[:, 0]
        if not len(keep) or steps == limit:
            break
        if len(keep) <= _COMPACT_BELOW * len(rows.index):
            cache.batch_select_indices(keep)
            rows = _Rows(rows.index[keep], rows.attention[keep], rows.position[keep])
            chosen = chosen[keep]
        rows.attention = torch.cat([rows.attention, rows.attention.new_ones(len(rows.index), 1)], dim=1)
        states = policy.hidden(
            policy.inputs(chosen[:, None]),
            rows.position.expand(axes, -1)[..., None] + step,
            rows.attention,
            past_key_values=cache,
            use_cache=True,
        )
        logits = policy.logits(states.last_hidden_state[:, -1])
    return tokens[:, :steps], lengths, finished, prefill


def _prefill(policy: Policy, prompts: PromptBatch, group: int) -> tuple[Tensor, DynamicCache, _Rows, int]:
    """Run the prompts once and turn their cache into G rows each; logits ``[B * G, V]`` of the first new token."""
    positions, following = policy.positions(prompts)
    cache = DynamicCache(config=policy.base.config.get_text_config())
    states = policy.hidden(
        policy.inputs(prompts.tokens, torch.cat(policy.embed(prompts))),
        positions,
        prompts.mask.long(),
        past_key_values=cache,
        use_cache=True,
    )
    logits = policy.logits(states.last_hidden_state[:, -1])
    cache.batch_repeat_interleave(group)
    rows = _Rows(
        index=torch.arange(len(prompts) * group, device=logits.device),
        attention=prompts.mask.long().repeat_interleave(group, dim=0),
        position=following.repeat_interleave(group),
    )
    return logits.repeat_interleave(group, dim=0), cache, rows, len(positions)
