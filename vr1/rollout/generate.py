"""Prompts -> completions: prefill, decoding, texts.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens, R rows, V vocabulary.
"""

from collections.abc import Collection
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vr1.policy.policy import Policy
from vr1.prompts import PromptBatch
from vr1.rollout.graphs import StepGraphs
from vr1.rollout.hf_generate import decode_unshared
from vr1.rollout.kernels import Kernels
from vr1.rollout.sampling import Sampling
from vr1.rollout.shared import decode_shared
from vr1.rollout.weights import RolloutWeights
from vr1.timing import Interval
from vr1.types import Prefix, Rollout

__all__ = ["decode_texts", "generate", "hidden_tokens"]


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: PromptBatch,
    sampling: Sampling,
    tokenizer: Any,
    draw: int = 0,
    prefix: Prefix | None = None,
    with_graph: bool = False,
    weights: RolloutWeights | None = None,
    graphs: StepGraphs | None = None,
    kernels: Kernels | None = None,
) -> Rollout:
    """Sample G completions for every prompt.

    The random numbers of a completion depend on ``draw``, the record and its index in the group alone, never on the
    batch: any split of a batch over steps or processes samples the same completions.

    Args:
        policy: the model.
        prompts: B prompts.
        sampling: group size, temperature, top-p and length limit.
        tokenizer: decodes the tokens.
        draw: seed of this rollout; training passes another one for each step.
        prefix: the policy's prefill of the prompts with its present weights; None computes it.
        with_graph: compute the prefix in training mode and with gradients, so that the loss of an update can use it
            (`vr1.policy.policy.Policy.can_reuse_prefix`).
        weights: decides whether 4-bit weights are dequantized; None decides for this rollout alone.
        graphs: CUDA graphs of decoding steps; None runs each step eagerly.
        kernels: decides whether steps use vr1's own kernels; None uses torch's operators.

    Returns:
        The rollout; every completion ends with its end token or is truncated at ``max_new_tokens``.
    """
    batch, group = len(prompts), sampling.group_size
    device = prompts.tokens.device
    uniform = _uniform_numbers(prompts, group, sampling.max_new_tokens, draw).to(device)
    # Kernels and graphs run on the current device, which need not be that of the model.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        prefilling = Interval()
        if policy.shares_prompt and prefix is None:
            prefix = _prefill(policy, prompts, with_graph)
        prefilling.stop()
        decoding = Interval()
        # Decoding consists of small operators, each of which is a tenth cheaper in inference mode.
        with torch.inference_mode():
            if prefix is not None:
                completions = decode_shared(
                    policy, prefix, sampling, uniform, weights=weights, graphs=graphs, kernels=kernels
                )
            else:
                completions = decode_unshared(policy, prompts, sampling, uniform)
        # Tensors made in inference mode cannot take part in training; copies can.
        tokens, lengths, finished, log_probs = (part.clone() for part in completions)
        decoding.stop()
    steps = tokens.shape[1]
    mask = torch.arange(steps, device=tokens.device)[None] < lengths[:, None]
    texts = decode_texts(tokenizer, tokens, mask, prompts)
    return Rollout(
        tokens=tokens.reshape(batch, group, steps),
        mask=mask.reshape(batch, group, steps),
        finished=finished.reshape(batch, group),
        log_probs=log_probs.masked_fill(~mask, 0.0).reshape(batch, group, steps),
        texts=texts,
        prefix=prefix,
        # The texts have waited for the tokens: nothing waits for these.
        seconds={"prefill": prefilling.seconds, "decode": decoding.seconds},
    )


def _prefill(policy: Policy, prompts: PromptBatch, with_graph: bool) -> Prefix:
    """The prompts' prefix, with a graph in training mode, in which a policy may recompute activations."""
    was_training = policy.training
    policy.train(was_training or with_graph)
    with torch.set_grad_enabled(with_graph):
        prefix = policy.prefill(prompts)
    policy.train(was_training)
    return prefix


def _uniform_numbers(prompts: PromptBatch, group: int, limit: int, draw: int) -> Tensor:
    """Uniform random numbers ``[B * G, limit]`` float64, from a separate stream for every record and draw."""
    streams = [np.random.default_rng([draw, record.image_id]) for record in prompts.records]
    return torch.from_numpy(np.concatenate([stream.random((group, limit)) for stream in streams]))


def hidden_tokens(tokenizer: Any, markers: Collection[int]) -> set[int]:
    """Special tokens that are left out of texts: all but a family's markers, which are part of its answers.

    Args:
        tokenizer: of transformers.
        markers: token ids of the markers.
    """
    return {token for token, added in tokenizer.added_tokens_decoder.items() if added.special} - set(markers)


def decode_texts(tokenizer: Any, tokens: Tensor, mask: Tensor, prompts: PromptBatch) -> list[list[str]]:
    """The texts of rows ``[R, C]`` by prompt, without `hidden_tokens`."""
    rows = [row[present].tolist() for row, present in zip(tokens.cpu(), mask.cpu(), strict=True)]
    if prompts.markers:
        hidden = hidden_tokens(tokenizer, prompts.markers)
        rows = [[token for token in row if token not in hidden] for row in rows]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=not prompts.markers)
    group = len(texts) // len(prompts)
    return [texts[start : start + group] for start in range(0, len(texts), group)]
