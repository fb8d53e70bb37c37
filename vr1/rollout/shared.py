"""Decoding with image and prompt computed once per group.

Shape letters: B prompts, G group size, C completion tokens, R running rows, V vocabulary.
"""

import torch
from torch import Tensor

from vr1.policy.policy import Policy
from vr1.rollout.cache import GroupCache
from vr1.rollout.decoder import make_decoder
from vr1.rollout.sampling import Sampling, sample_token
from vr1.types import Prefix

# Finished rows leave the cache when at most this share of its rows is running: this copies the keys and values of the
# remaining completions once and makes every later step cheaper.
_COMPACT_BELOW = 0.75


def decode_shared(policy: Policy, prefix: Prefix, sampling: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sample G completions of each of B prompts.

    Args:
        policy: a policy that shares prompts.
        prefix: its prefill of the B prompts.
        sampling: group size, temperature, top-p and length limit.
        uniform: ``[B * G, max_new_tokens]`` uniform random numbers in [0, 1).

    Returns:
        Tokens ``[B * G, C]`` int64, their lengths ``[B * G]`` int64, and whether they are finished ``[B * G]`` bool.
    """
    group, limit = sampling.group_size, sampling.max_new_tokens
    device, total = prefix.state.device, len(prefix.state) * group
    forbidden = torch.tensor(policy.forbidden_tokens, device=device)
    ends = torch.tensor(policy.eos_tokens, device=device)
    tokens = torch.full((total, limit), int(ends[0]), device=device)
    lengths = torch.full((total,), limit, device=device)
    finished = torch.zeros(total, dtype=torch.bool, device=device)
    # For each row of the cache: its row in the result, and the position of its first token.
    index = torch.arange(total, device=device)
    position = prefix.next_position.repeat_interleave(group)
    cache = GroupCache(prefix, group)
    decoder = make_decoder(policy, cache, total)
    logits = policy.logits(prefix.state.detach()).repeat_interleave(group, dim=0)
    steps = 0
    for step in range(limit):
        steps = step + 1
        logits[:, forbidden] = -torch.inf
        sampled = sample_token(logits, sampling, uniform[index, step])
        running = ~finished[index]
        tokens[index[running], step] = sampled[running]
        ended = running & torch.isin(sampled, ends)
        finished[index[ended]] = True
        lengths[index[ended]] = steps
        remaining = (running & ~ended).nonzero()[:, 0]
        if not len(remaining) or steps == limit:
            break
        if len(remaining) <= _COMPACT_BELOW * len(index):
            cache.select(remaining)
            index, position, sampled = index[remaining], position[remaining], sampled[remaining]
            decoder = make_decoder(policy, cache, len(remaining))
        logits = decoder(sampled, position + step)
    return tokens[:, :steps], lengths, finished
