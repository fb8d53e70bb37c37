"""Prompts -> completions.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens, R rows, V vocabulary.
"""

import time
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vr1.policy.policy import Policy
from vr1.prompts import PromptBatch
from vr1.rollout.hf_generate import decode_plain
from vr1.rollout.sampling import Sampling, choose
from vr1.rollout.shared import decode_shared
from vr1.types import Prefix, Rollout

__all__ = ["choose", "generate"]


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: PromptBatch,
    sampling: Sampling,
    tokenizer: Any,
    draw: int = 0,
    prefix: Prefix | None = None,
    with_graph: bool = False,
) -> Rollout:
    """Sample G completions for every prompt.

    The random numbers of a completion depend on ``draw``, the record and the place in its group alone, never on the
    batch it is in: any split of a batch over steps or processes samples the same completions.

    Args:
        policy: the model.
        prompts: B prompts.
        sampling: group size, temperature, top-p and length limit.
        tokenizer: decodes the tokens.
        draw: which of the many possible rollouts; training counts up.
        prefix: what the policy has made of the prompts already, if it has.
        with_graph: make the prefix as training would, so that a loss of the completions can go back through it.

    Returns:
        The rollout; every completion ends with its end token or is cut at ``max_new_tokens``.
    """
    batch, group = len(prompts), sampling.group_size
    chances = _random_numbers(prompts, group, sampling.max_new_tokens, draw).to(prompts.tokens.device)
    started = time.perf_counter()
    if policy.shares_prompt and prefix is None:
        prefix = _read(policy, prompts, with_graph)
    read = time.perf_counter()
    # Small operators are what decoding is made of; each is a tenth cheaper in inference mode.
    with torch.inference_mode():
        if prefix is not None:
            completions = decode_shared(policy, prefix, sampling, chances)
        else:
            completions = decode_plain(policy, prompts, sampling, chances)
    # Tensors of that mode cannot take part in training, their copies can.
    tokens, lengths, finished = (part.clone() for part in completions)
    decoded = time.perf_counter()
    steps = tokens.shape[1]
    mask = torch.arange(steps, device=tokens.device)[None] < lengths[:, None]
    return Rollout(
        tokens=tokens.reshape(batch, group, steps),
        mask=mask.reshape(batch, group, steps),
        finished=finished.reshape(batch, group),
        texts=_decode(tokenizer, tokens, mask, prompts),
        prefix=prefix,
        seconds={"prefill": read - started, "decode": decoded - read},
    )


def _read(policy: Policy, prompts: PromptBatch, with_graph: bool) -> Prefix:
    """The prompts' prefix; one with a graph is made in training's mode, in which a policy may recompute activations."""
    was_training = policy.training
    policy.train(was_training or with_graph)
    with torch.set_grad_enabled(with_graph):
        prefix = policy.read(prompts)
    policy.train(was_training)
    return prefix


def _random_numbers(prompts: PromptBatch, group: int, limit: int, draw: int) -> Tensor:
    """Uniform numbers ``[B * G, limit]``, a stream of its own for every record and draw."""
    streams = [np.random.default_rng([draw, record.image_id]) for record in prompts.records]
    return torch.from_numpy(np.concatenate([stream.random((group, limit)) for stream in streams]))


def hidden_tokens(tokenizer: Any, markers: Collection[int]) -> set[int]:
    """The special tokens that are not shown in a text: all but those that belong to an answer."""
    return {token for token, added in tokenizer.added_tokens_decoder.items() if added.special} - set(markers)


def _decode(tokenizer: Any, tokens: Tensor, mask: Tensor, prompts: PromptBatch) -> list[list[str]]:
    """The texts of rows ``[R, C]`` by prompt, special tokens left out that are no part of an answer."""
    rows = [row[kept].tolist() for row, kept in zip(tokens.cpu(), mask.cpu(), strict=True)]
    if prompts.markers:
        left_out = hidden_tokens(tokenizer, prompts.markers)
        rows = [[token for token in row if token not in left_out] for row in rows]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=not prompts.markers)
    group = len(texts) // len(prompts)
    return [texts[start : start + group] for start in range(0, len(texts), group)]
