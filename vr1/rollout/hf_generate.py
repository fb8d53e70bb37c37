"""Decoding by transformers' own ``generate``, a row per completion: for models whose rows cannot share a prompt.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens, R rows, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from vr1.policy.logprobs import repeated
from vr1.policy.policy import Policy
from vr1.prompts import PromptBatch
from vr1.rollout.sampling import Sampling, choose


class _Chooser(LogitsProcessor):
    """Leaves one token per row for a greedy search to find: the one that `choose` takes."""

    def __init__(self, sampling: Sampling, chances: Tensor, forbidden: list[int], prompt_tokens: int) -> None:
        self.sampling, self.chances, self.forbidden = sampling, chances, forbidden
        self.prompt_tokens = prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Scores ``[R, V]`` with all but the chosen token at minus infinity."""
        scores = scores.float()
        scores[:, self.forbidden] = -torch.inf
        chosen = choose(scores, self.sampling, self.chances[:, input_ids.shape[1] - self.prompt_tokens])
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)


def decode_plain(
    policy: Policy, prompts: PromptBatch, sampling: Sampling, chances: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample G completions of each of B prompts; further arguments and returns as in `decode_shared`."""
    group, width = sampling.group_size, prompts.tokens.shape[1]
    types = {prompts.types_name: prompts.token_types.repeat_interleave(group, dim=0)} if prompts.types_name else {}
    answers = policy.network.generate(
        input_ids=prompts.tokens.repeat_interleave(group, dim=0),
        attention_mask=prompts.mask.long().repeat_interleave(group, dim=0),
        **types,
        **repeated(prompts, list(range(len(prompts))), group),
        generation_config=_settings(policy, sampling),
        logits_processor=[_Chooser(sampling, chances, policy.forbidden_tokens, width)],
    )
    tokens = answers[:, width:]
    ends = torch.isin(tokens, torch.tensor(policy.eos_tokens, device=tokens.device))
    finished = ends.any(1)
    # An end token stands at the first place where it is found; what follows is padding.
    lengths = torch.where(finished, ends.long().argmax(1) + 1, tokens.shape[1])
    return tokens, lengths, finished


def _settings(policy: Policy, sampling: Sampling) -> Any:
    # Each one said, or the model's own generation config would fill it in: released models come with penalties.
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
