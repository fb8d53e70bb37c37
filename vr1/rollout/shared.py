"""Decoding with image and prompt computed once per group.

Shape letters: B prompts, G group size, C completion tokens, R running rows, V vocabulary.
"""

import torch
from torch import Tensor

from vr1.policy.policy import Policy
from vr1.rollout.cache import GroupCache
from vr1.rollout.decoder import make_decoder
from vr1.rollout.sampling import Decoded, Sampling, sample_token
from vr1.types import Prefix

# Finished rows leave the cache when at most this share of its rows is running: this copies the keys and values of the
# remaining completions once and makes every later step cheaper.
_COMPACT_BELOW = 0.75
# On a GPU, tokens between two looks for rows that have ended.
_CHECK_EVERY = 16


def decode_shared(
    policy: Policy, prefix: Prefix, sampling: Sampling, uniform: Tensor, check_every: int | None = None
) -> Decoded:
    """Sample G completions of each of B prompts.

    Args:
        policy: a policy that shares prompts.
        prefix: its prefill of the B prompts.
        sampling: group size, temperature, top-p and length limit.
        uniform: ``[B * G, max_new_tokens]`` uniform random numbers in [0, 1).
        check_every: tokens between two looks for rows that have ended; the result does not depend on it. None looks
            after every token on a CPU and after every 16 on a GPU, which works behind the host: each look waits for it.

    Returns:
        B * G rows of completions.
    """
    group, limit = sampling.group_size, sampling.max_new_tokens
    device, total = prefix.state.device, len(prefix.state) * group
    forbidden = torch.tensor(policy.forbidden_tokens, device=device)
    ends = torch.tensor(policy.eos_tokens, device=device)
    check_every = check_every or (1 if device.type == "cpu" else _CHECK_EVERY)
    tokens = torch.full((total, limit), policy.eos_tokens[0], device=device)
    log_probs = torch.zeros(total, limit, device=device)
    lengths = torch.full((total,), limit, device=device)
    finished = torch.zeros(total, dtype=torch.bool, device=device)
    # For each row of the cache: its row in the result, the position of its first token, and whether it still runs.
    index = torch.arange(total, device=device)
    position = prefix.next_position.repeat_interleave(group)
    running = torch.ones(total, dtype=torch.bool, device=device)
    cache = GroupCache(prefix, group)
    decoder = make_decoder(policy, cache, total)
    logits = policy.logits(prefix.state.detach()).repeat_interleave(group, dim=0)
    for step in range(limit):
        logits.index_fill_(1, forbidden, -torch.inf)
        sampled, chosen = sample_token(logits, sampling, uniform[:, step])
        tokens[:, step].index_copy_(0, index, torch.where(running, sampled, ends[0]))
        log_probs[:, step].index_copy_(0, index, chosen.masked_fill(~running, 0.0))
        ended = (sampled[:, None] == ends).any(1) & running
        lengths.index_copy_(0, index, torch.where(ended, step + 1, lengths[index]))
        running = running & ~ended
        if step + 1 == limit:
            finished.index_copy_(0, index, ~running)
        elif (step + 1) % check_every == 0:
            finished.index_copy_(0, index, ~running)
            remaining = running.nonzero()[:, 0]
            if not len(remaining):
                break
            if len(remaining) <= _COMPACT_BELOW * len(index):
                cache.select(remaining)
                index, position, sampled = index[remaining], position[remaining], sampled[remaining]
                running, uniform = running[remaining], uniform[remaining]
                decoder = make_decoder(policy, cache, len(remaining))
        if step + 1 < limit:
            logits = decoder(sampled, position + step)
    longest = int(lengths.max())
    return Decoded(tokens[:, :longest], lengths, finished, log_probs[:, :longest])
