"""Decoding with the image and the prompt computed once per group.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens, R rows still running, V vocabulary.
"""

import torch
from torch import Tensor

from vr1.policy.policy import Policy
from vr1.rollout.cache import GroupCache
from vr1.rollout.decoder import decoder
from vr1.rollout.sampling import Sampling, choose
from vr1.types import Prefix

# The finished rows leave the cache when no more than this share of its rows is still running: that copies what is left
# of the completions once, and every later step is cheaper for it.
_COMPACT_BELOW = 0.75


def decode_shared(policy: Policy, prefix: Prefix, sampling: Sampling, chances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sample G completions of each of B prompts.

    Args:
        policy: a policy that shares prompts.
        prefix: what it made of the B prompts.
        sampling: group size, temperature, top-p and length limit.
        chances: ``[B * G, limit]`` uniform numbers in [0, 1).

    Returns:
        Tokens ``[B * G, C]`` int64, their lengths ``[B * G]`` int64, and which are finished ``[B * G]`` bool.
    """
    group, limit = sampling.group_size, sampling.max_new_tokens
    device, number = prefix.state.device, len(prefix.state) * group
    forbidden = torch.tensor(policy.forbidden_tokens, device=device)
    ends = torch.tensor(policy.eos_tokens, device=device)
    tokens = torch.full((number, limit), int(ends[0]), device=device)
    lengths = torch.full((number,), limit, device=device)
    finished = torch.zeros(number, dtype=torch.bool, device=device)
    # Which row of the result each row of the cache is, and where its first token stands.
    index = torch.arange(number, device=device)
    position = prefix.following.repeat_interleave(group)
    cache = GroupCache(prefix, group)
    run = decoder(policy, cache, number)
    logits = policy.logits(prefix.state.detach()).repeat_interleave(group, dim=0)
    steps = 0
    for step in range(limit):
        steps = step + 1
        logits[:, forbidden] = -torch.inf
        chosen = choose(logits, sampling, chances[index, step])
        running = ~finished[index]
        tokens[index[running], step] = chosen[running]
        ended = running & torch.isin(chosen, ends)
        finished[index[ended]] = True
        lengths[index[ended]] = steps
        keep = (running & ~ended).nonzero()[:, 0]
        if not len(keep) or steps == limit:
            break
        if len(keep) <= _COMPACT_BELOW * len(index):
            cache.keep(keep)
            index, position, chosen = index[keep], position[keep], chosen[keep]
            run = decoder(policy, cache, len(keep))
        logits = run(chosen, position + step)
    return tokens[:, :steps], lengths, finished
