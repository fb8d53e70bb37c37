"""Prompts -> completions, with the image and the prompt computed once per group.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens, R rows still running, V vocabulary.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from vr1.policy.model import Policy
from vr1.prompts import PromptBatch
from vr1.records import Rollout
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


@torch.no_grad()
def generate(policy: Policy, prompts: PromptBatch, sampling: Sampling, tokenizer: object, draw: int = 0) -> Rollout:
    """Sample G completions for every prompt.

    The random numbers of a completion depend on ``draw``, the record and the place in its group alone, never on the
    batch it is in: any split of a batch over steps or processes samples the same completions.

    Args:
        policy: the model.
        prompts: B prompts.
        sampling: group size, temperature, top-p and length limit.
        tokenizer: decodes the tokens.
        draw: which of the many possible rollouts; training counts up.

    Returns:
        The rollout; every completion ends with its end token or is cut at ``max_new_tokens``.
    """
    started = time.perf_counter()
    batch, group, limit = len(prompts), sampling.group_size, sampling.max_new_tokens
    device = prompts.tokens.device
    logits, cache, rows = _prefill(policy, prompts, group)
    prefilled = time.perf_counter()
    chances = _random_numbers(prompts, group, limit, draw).to(device)
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
            policy.base.get_input_embeddings()(chosen[:, None]),
            rows.position.expand(3, -1)[..., None] + step,
            rows.attention,
            past_key_values=cache,
            use_cache=True,
        )
        logits = policy.logits(states.last_hidden_state[:, -1])
    mask = torch.arange(steps, device=device)[None] < lengths[:, None]
    return Rollout(
        tokens=tokens[:, :steps].reshape(batch, group, steps),
        mask=mask.reshape(batch, group, steps),
        finished=finished.reshape(batch, group),
        texts=_decode(tokenizer, tokens[:, :steps], mask, batch),
        seconds={"prefill": prefilled - started, "decode": time.perf_counter() - prefilled},
    )


def _prefill(policy: Policy, prompts: PromptBatch, group: int) -> tuple[Tensor, DynamicCache, _Rows]:
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
    return logits.repeat_interleave(group, dim=0), cache, rows


def _random_numbers(prompts: PromptBatch, group: int, limit: int, draw: int) -> Tensor:
    """Uniform numbers ``[B * G, limit]``, a stream of its own for every record and draw."""
    streams = [np.random.default_rng([draw, record.image_id]) for record in prompts.records]
    return torch.from_numpy(np.concatenate([stream.random((group, limit)) for stream in streams]))


def choose(logits: Tensor, sampling: Sampling, chance: Tensor) -> Tensor:
    """One token per row by inversion of the distribution function.

    Args:
        logits: ``[R, V]`` float32.
        sampling: temperature and top-p.
        chance: ``[R]`` uniform numbers in [0, 1).

    Returns:
        ``[R]`` int64 tokens.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, 0.0, 5.0]])
        >>> choose(logits, Sampling(), torch.tensor([0.7, 0.0])).tolist()
        [1, 0]
        >>> choose(logits, Sampling(temperature=0), torch.tensor([0.7, 0.0])).tolist()
        [0, 2]
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        # The most likely token always stays: what is cut lies behind the tokens that already reach top_p.
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= sampling.top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ordered)
    cumulative = probabilities.double().cumsum(-1)
    # A chance below the total lands on a token of positive probability, rounding of the sum included.
    threshold = chance.double().clamp(max=1 - 1e-12) * cumulative[:, -1]
    return torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def _decode(tokenizer: object, tokens: Tensor, mask: Tensor, batch: int) -> list[list[str]]:
    texts = tokenizer.batch_decode(  # type: ignore[attr-defined]
        [row[kept].tolist() for row, kept in zip(tokens.cpu(), mask.cpu(), strict=True)], skip_special_tokens=True
    )
    group = len(texts) // batch
    return [texts[start : start + group] for start in range(0, len(texts), group)]
