"""Log-probs and entropies of completion tokens: from hidden states, or by a forward of one row per completion.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens, T scored tokens, D hidden size, V
vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from vr1.cpu_kernels import training
from vr1.prompts import PromptBatch

# Tokens whose logits exist at the same time: 1,024 rows of a 152K vocabulary are 0.6 GB in float32.
CHUNK = 1024


def token_log_probs(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    temperature: float,
    entropy_gradient: bool = False,
    fixed_head: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probs of tokens and entropies of their distributions, in chunks, so that few logits exist at a time.

    ``log p = z[target] - logsumexp(z)`` and ``H = logsumexp(z) - sum(softmax(z) * z)`` with
    ``z = head(hidden) / temperature``.

    Backward computes the logits of a chunk once more, but for the last chunk, with which it begins: these logits exist
    from forward on. Where the head is not trained, it computes none: a log-prob depends on its own hidden state alone,
    so that forward can compute the derivative ``[T, D]`` while the logits exist.

    Args:
        head: maps hidden states ``[..., D]`` to float32 logits ``[..., V]``.
        hidden: ``[T, D]``.
        targets: ``[T]`` int64.
        temperature: the temperature that the tokens were sampled with.
        entropy_gradient: whether the entropies have a gradient.
        fixed_head: whether no weight of the head is trained.

    Returns:
        Log-probs ``[T]`` float32, and entropies ``[T]`` float32.

    Example:
        >>> log_probs, entropy = token_log_probs(lambda logits: logits, torch.zeros(2, 4), torch.tensor([0, 3]), 1.0)
        >>> log_probs.exp().tolist()
        [0.25, 0.25]
    """

    def chunk(states: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(states)
        if temperature != 1:
            logits = logits / temperature
        # Entropies last: recomputation in backward stops once it has all that backward needs.
        if entropy_gradient:
            total = logits.logsumexp(-1)
            return logits.gather(-1, target[:, None])[:, 0] - total, _entropy(logits, total)
        log_probs, total = _LogProbs.apply(logits, target)
        with torch.no_grad():
            return log_probs, _entropy(logits, total)

    def differentiated(states: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        own = states.detach().requires_grad_()
        log_probs, entropy = chunk(own, target)
        (derivative,) = torch.autograd.grad(log_probs.sum(), own)
        return _WithDerivative.apply(states, log_probs.detach(), derivative), entropy

    def recomputed(states: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = checkpoint(chunk, states, target, use_reentrant=False, preserve_rng_state=False)
        return result

    trains = torch.is_grad_enabled() and hidden.requires_grad
    compute = differentiated if trains and fixed_head and not entropy_gradient else recomputed
    *others, last = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    parts = [compute(*part) for part in others]
    parts.append((chunk if compute is recomputed else compute)(*last))
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


class _LogProbs(torch.autograd.Function):
    """Log-probs ``[T]`` of tokens by their logits ``[T, V]``, and the logarithms of the sums, which have no gradient.

    Backward makes one tensor of the logits' size, where operators of torch make four.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        total = training.logsumexp(logits) if training.is_fused(logits) else logits.logsumexp(-1)
        ctx.save_for_backward(logits, target, total)
        ctx.mark_non_differentiable(total)
        return logits.gather(-1, target[:, None])[:, 0] - total, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, target, total = ctx.saved_tensors
        gradient, place = gradients[0][:, None], target[:, None]
        # The derivative by logit v is (v is the target) - softmax(logits)[v].
        if training.is_fused(logits, gradient):
            of_logits = training.scaled_softmax(logits, total, -gradients[0])
        else:
            of_logits = (logits - total[:, None]).exp_().mul_(-gradient)
        return of_logits.scatter_(1, place, of_logits.gather(1, place) + gradient), None


class _WithDerivative(torch.autograd.Function):
    """Values ``[T]`` of states ``[T, D]``, each of its own state, by their derivative ``[T, D]``."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, values: Tensor, derivative: Tensor) -> Tensor:
        del states  # Its gradient is what this is about.
        ctx.save_for_backward(derivative)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (derivative,) = ctx.saved_tensors
        return (gradients[0][:, None] * derivative).to(derivative.dtype), None, None


def _entropy(logits: Tensor, total: Tensor) -> Tensor:
    """Entropies ``[T]`` of the distributions of logits ``[T, V]``, given their ``logsumexp`` ``[T]``."""
    if not total.requires_grad and training.is_fused(logits):
        return training.entropy(logits, total)
    probabilities = torch.softmax(logits, dim=-1)
    # In place where no backward needs the probabilities: they are as large as the logits.
    product = probabilities * logits if probabilities.requires_grad else probabilities.mul_(logits)
    return total - product.sum(-1)


def unshared_log_probs(
    network: Any,
    prompts: PromptBatch,
    tokens: Tensor,
    mask: Tensor,
    temperature: float,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probs of completions by transformers' forward, one row per completion, image and prompt included.

    Args:
        network: a model of transformers, or a peft model around one.
        prompts: B prompts.
        tokens: ``[B, G, C]`` int64.
        mask: ``[B, G, C]`` bool.
        temperature: the temperature that the tokens were sampled with.
        entropy_gradient: whether the entropies have a gradient.

    Returns:
        Log-probs and entropies, as `vr1.policy.policy.Policy.log_probs` returns them.
    """
    log_probs, entropies = [], []
    for row in range(len(prompts)):
        length = int(mask[row].sum(1).max())
        answers, present = tokens[row, :, :length], mask[row, :, :length]
        group = len(answers)
        prompt = prompts.tokens[row][prompts.mask[row]].expand(group, -1)
        types = {}
        if name := prompts.types_name:
            prompt_types = prompts.token_types[row][prompts.mask[row]].expand(group, -1)
            # Text is 0, except for PaliGemma, whose prompt is 0 (bidirectional) and whose answer is 1 (causal).
            answer_type = int(network.config.model_type == "paligemma")
            types[name] = torch.cat([prompt_types, torch.full_like(answers, answer_type)], dim=1)
        logits = network(
            input_ids=torch.cat([prompt, answers], dim=1),
            attention_mask=torch.cat([torch.ones_like(prompt), present.long()], dim=1),
            **types,
            **repeat_vision(prompts, [row], group),
            use_cache=False,
            # The last of these predicts the token after the answer.
            logits_to_keep=length + 1,
        ).logits[:, :-1]
        values, entropy = token_log_probs(
            Tensor.float, logits[present], answers[present], temperature, entropy_gradient
        )
        empty = torch.zeros(mask[row].shape, device=mask.device)
        log_probs.append(empty.masked_scatter(mask[row], values))
        entropies.append(empty.masked_scatter(mask[row], entropy))
    return torch.stack(log_probs), torch.stack(entropies)


def repeat_vision(prompts: PromptBatch, rows: list[int], times: int) -> dict[str, Tensor]:
    """The image tensors of some prompts by argument name, each prompt's repeated ``times`` in a row."""
    parts = [prompts.vision_of(row) for row in rows for _ in range(times)]
    return {name: torch.cat([part[name] for part in parts]) for name in prompts.vision}
