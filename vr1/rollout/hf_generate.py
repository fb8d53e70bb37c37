"""Decoding by transformers' ``generate``, one row per completion, for models that cannot share prompts.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens, R rows, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from vr1.policy.logprobs import repeat_vision
from vr1.policy.policy import Policy
from vr1.prompts import PromptBatch
from vr1.rollout.sampling import Decoded, Sampling, sample_token


class _SampledTokenOnly(LogitsProcessor):
    """Leaves greedy search one token per row: the one that `sample_token` returns."""

    def __init__(self, sampling: Sampling, uniform: Tensor, forbidden: list[int], prompt_tokens: int) -> None:
        self.sampling, self.uniform, self.forbidden = sampling, uniform, forbidden
        self.prompt_tokens = prompt_tokens
        self.log_probs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Scores ``[R, V]`` with all but the sampled token at minus infinity."""
        scores = scores.float()
        scores[:, self.forbidden] = -torch.inf
        step = input_ids.shape[1] - self.prompt_tokens
        sampled, log_probs = sample_token(scores, self.sampling, self.uniform[:, step])
        self.log_probs.append(log_probs)
        return torch.full_like(scores, -torch.inf).scatter(1, sampled[:, None], 0.0)


def decode_unshared(policy: Policy, prompts: PromptBatch, sampling: Sampling, uniform: Tensor) -> Decoded:
    """Sample G completions of each of B prompts.

    Args:
        policy: any policy.
        prompts: B prompts.
        sampling: group size, temperature, top-p and length limit.
        uniform: ``[B * G, max_new_tokens]`` uniform random numbers in [0, 1).

    Returns:
        B * G rows of completions.
    """
    group, width = sampling.group_size, prompts.tokens.shape[1]
    types = {prompts.types_name: prompts.token_types.repeat_interleave(group, dim=0)} if prompts.types_name else {}
    sampler = _SampledTokenOnly(sampling, uniform, policy.forbidden_tokens, width)
    answers = policy.network.generate(
        input_ids=prompts.tokens.repeat_interleave(group, dim=0),
        attention_mask=prompts.mask.long().repeat_interleave(group, dim=0),
        **types,
        **repeat_vision(prompts, list(range(len(prompts))), group),
        generation_config=_generation_config(policy, sampling),
        logits_processor=[sampler],
    )
    tokens = answers[:, width:]
    ends = torch.isin(tokens, torch.tensor(policy.eos_tokens, device=tokens.device))
    finished = ends.any(1)
    # A completion ends with its first end token; what follows is padding.
    lengths = torch.where(finished, ends.long().argmax(1) + 1, tokens.shape[1])
    return Decoded(tokens, lengths, finished, torch.stack(sampler.log_probs, dim=1))


def _generation_config(policy: Policy, sampling: Sampling) -> Any:
    # All explicit: others would be filled in from the model's own config, and released models come with penalties.
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=policy.eos_tokens,
        pad_token_id=policy.eos_tokens[0],
        use_cache=True,
    )
