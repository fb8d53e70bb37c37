"""One row per completion, through the whole model as transformers calls it: for models whose rows cannot be shared.

Slower, since image and prompt are computed once per completion, but it asks nothing of the model's inner parts.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens.
"""

from typing import Any

import torch
from torch import Tensor

from vr1.policy.token_scores import token_log_probs
from vr1.prompts import PromptBatch


def plain_log_probs(
    network: Any, prompts: PromptBatch, tokens: Tensor, mask: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability of every completion token; arguments and returns as in `Policy.log_probs`."""
    log_probs, entropies = [], []
    for row in range(len(prompts)):
        length = int(mask[row].sum(1).max())
        answers, kept = tokens[row, :, :length], mask[row, :, :length]
        group = len(answers)
        prompt = prompts.tokens[row][prompts.mask[row]].expand(group, -1)
        types = {}
        if name := prompts.types_name:
            prompt_types = prompts.token_types[row][prompts.mask[row]].expand(group, -1)
            # Text is 0 for all but PaliGemma, which sees its prompt as a whole (0) and its answer word by word (1).
            answer_type = int(network.config.model_type == "paligemma")
            types[name] = torch.cat([prompt_types, torch.full_like(answers, answer_type)], dim=1)
        logits = network(
            input_ids=torch.cat([prompt, answers], dim=1),
            attention_mask=torch.cat([torch.ones_like(prompt), kept.long()], dim=1),
            **types,
            **repeated(prompts, [row], group),
            use_cache=False,
            # The last one predicts what follows the answer.
            logits_to_keep=length + 1,
        ).logits[:, :-1]
        values, entropy = token_log_probs(Tensor.float, logits[kept], answers[kept], temperature)
        empty = torch.zeros(mask[row].shape, device=mask.device)
        log_probs.append(empty.masked_scatter(mask[row], values))
        entropies.append(empty.masked_scatter(mask[row], entropy))
    return torch.stack(log_probs), torch.stack(entropies)


def repeated(prompts: PromptBatch, rows: list[int], times: int) -> dict[str, Tensor]:
    """The image tensors of some of the prompts, each prompt's ``times`` after another."""
    parts = [prompts.vision_of(row) for row in rows for _ in range(times)]
    return {name: torch.cat([part[name] for part in parts]) for name in prompts.vision}
