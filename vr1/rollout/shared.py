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
from vr1.rollout.group_cache import GroupCache
from vr1.rollout.settings import Sampling

# The finished rows leave the cache when no more than this share of its rows is still running: that copies what is left
# of the completions once, and every later step is cheaper for it.
_COMPACT_BELOW = 0.75


@dataclass(slots=True)
class _Rows:
    """The rows still in the cache: which row of the result each one is, and where its first token stands."""

    index: Tensor
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
            cache.keep(keep)
            rows = _Rows(rows.index[keep], rows.position[keep])
            chosen = chosen[keep]
        states = policy.hidden(
            policy.inputs(chosen[:, None]),
            rows.position.expand(axes, -1)[..., None] + step,
            sharing=cache,
            past_key_values=cache,
            use_cache=True,
        )
        logits = policy.logits(states.last_hidden_state[:, -1])
    return tokens[:, :steps], lengths, finished, prefill


def _prefill(policy: Policy, prompts: PromptBatch, group: int) -> tuple[Tensor, GroupCache, _Rows, int]:
    """Run the prompts once; their cache is there for G rows each; logits ``[B * G, V]`` of the first new token."""
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
    rows = _Rows(
        index=torch.arange(len(prompts) * group, device=logits.device),
        position=following.repeat_interleave(group),
    )
    return logits.repeat_interleave(group, dim=0), GroupCache(cache, prompts.mask, group), rows, len(positions)
