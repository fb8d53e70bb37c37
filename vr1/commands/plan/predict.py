"""Memory by part, at the three moments of a step at which most of it is held.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens, V vocabulary, D hidden
size.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vr1.commands.plan.live_bytes import FourBitLinear, LiveBytes
from vr1.commands.plan.needs import Needs
from vr1.commands.plan.shapes import empty_policy, largest_prompts
from vr1.errors import UserError
from vr1.policy.logprobs import token_log_probs
from vr1.policy.policy import Policy
from vr1.prompts import PromptBatch

# Bytes that `choose` needs for each logit: float32 logits and probabilities, their sums in float64.
_CHOOSING = 28
# 4 bits a weight; an 8-bit scale for 64 of them; a float32 scale for 256 of those.
_FOUR_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What one process holds.

    Attributes:
        parameters: numbers of parameters: ``all``, ``trained``.
        moments: bytes by part, for each of ``rollout``, ``policy`` (forward and backward of the loss) and ``update``.
        row_tokens: tokens of a prompt and all its completions, at most.
    """

    parameters: dict[str, int]
    moments: dict[str, dict[str, float]]
    row_tokens: int

    @property
    def worst(self) -> str:
        """The moment at which most is held."""
        return max(self.moments, key=lambda moment: sum(self.moments[moment].values()))

    @property
    def peak(self) -> float:
        """Bytes at that moment."""
        return sum(self.moments[self.worst].values())


def predict(needs: Needs) -> MemoryPlan:
    """Predict the memory of a training, without its weights.

    Everything is taken at its largest: images at ``max_pixels``, all completions at their limit.

    Args:
        needs: the settings.

    Raises:
        UserError: the model has no shared rows, which is what is counted here.
    """
    policy = empty_policy(needs)
    if not policy.shares_prompt:
        raise UserError(
            "the plan knows models whose completions share their prompt (Qwen-VL, InternVL); leave policy.share_prompt"
            " out, or find the memory of this one out by a run of one step (callbacks.Throughput logs its peak)"
        )
    prompts = largest_prompts(needs)
    held = _held(policy, needs)
    activations, logits = _policy_step(policy, prompts, needs)
    working, cache, choosing = _rollout(policy, prompts, needs)
    gathered, blocks = _gathered(policy, needs)
    # Between two steps there are no gradients.
    kept = {part: size for part, size in held.items() if part != "gradients"}
    moments = {
        "rollout": {**kept, "gathered weights": gathered, "cache": cache, "logits": choosing, "activations": working},
        "policy": {**held, "gathered weights": blocks, "activations": activations, "logits": logits},
        # AdamW makes its step for all tensors at once on a GPU, which takes one more value a parameter.
        "update": {**held, "activations": held["gradients"]},
    }
    trained = [parameter.numel() for parameter in policy.parameters() if parameter.requires_grad]
    return MemoryPlan(
        parameters={"all": sum(parameter.numel() for parameter in policy.parameters()), "trained": sum(trained)},
        moments={moment: {part: size for part, size in parts.items() if size} for moment, parts in moments.items()},
        row_tokens=prompts.tokens.shape[1] + needs.group_size * needs.completion_tokens,
    )


def _held(policy: Policy, needs: Needs) -> dict[str, float]:
    """What is there all the time, after the first step."""
    stored = getattr(torch, needs.policy.dtype).itemsize
    sizes: dict[str, float] = defaultdict(float)
    packed = {id(part.weight) for part in policy.modules() if isinstance(part, FourBitLinear)}
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            sizes["adapters"] += parameter.numel() * 4
        else:
            sizes["weights"] += parameter.numel() * (_FOUR_BITS if id(parameter) in packed else stored)
    sizes["weights"] += sum(buffer.numel() * buffer.element_size() for buffer in policy.buffers())
    # peft keeps adapters in float32 whatever the base is in.
    width = 4 if needs.policy.lora is not None else stored
    trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    sizes["gradients"] = trained * width
    sizes["optimizer"] = trained * _state_bytes(needs.optimizer, width)
    if needs.reference and not policy.has_adapters:
        sizes["reference"] = sizes["weights"]
    if needs.sharded:
        share = 0 if needs.offload else 1 / needs.processes
        return {part: size * share for part, size in sizes.items()}
    if needs.mixed and needs.policy.lora is None:
        # Autocast keeps a copy of every trained weight in what is computed with.
        sizes["weights"] += trained * getattr(torch, needs.compute_dtype).itemsize
    if needs.processes > 1:
        sizes["buckets"] = sizes["gradients"]
    return dict(sizes)


def _state_bytes(optimizer: Any, width: int) -> float:
    """Bytes of optimizer state for a parameter's value, found out by a step on a matrix of no importance."""
    layer = nn.Linear(512, 512, bias=False, dtype=torch.float32 if width == 4 else torch.bfloat16)
    # Some optimizers treat vectors apart.
    layer.register_parameter("bias", nn.Parameter(torch.zeros(8)))
    made = optimizer(layer.named_parameters())
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    state = [value for value in made.state[layer.weight].values() if isinstance(value, Tensor) and value.numel() > 256]
    return sum(value.numel() * value.element_size() for value in state) / layer.weight.numel()


def _policy_step(policy: Policy, prompts: PromptBatch, needs: Needs) -> tuple[float, float]:
    """Bytes of activations and of logits in forward and backward, beside weights and gradients."""
    tokens = torch.zeros(len(prompts), needs.group_size, needs.completion_tokens, dtype=torch.long)
    if needs.sharded:
        # A whole gradient is given up as soon as each process has its share, which is counted elsewhere.
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda whole: setattr(whole, "grad", None))
    with LiveBytes() as live:
        log_probs, _ = policy.log_probs(prompts, tokens, torch.ones_like(tokens, dtype=torch.bool))
        forward = live.peak
        live.reset()
        log_probs.sum().backward()
        # Gradients are counted elsewhere: there are none in forward, and they grow in backward.
        grown = _bytes(parameter for parameter in policy.parameters() if parameter.grad is not None)
        peak = max(forward, live.peak) - grown
    logits = min(_logits(policy, tokens), peak)
    for parameter in policy.parameters():
        parameter.grad = None
    return peak - logits, logits


def _logits(policy: Policy, tokens: Tensor) -> float:
    """Bytes that the scores of all tokens of the vocabulary take, as many tokens at a time as are scored together."""
    head = policy.base.lm_head
    states = torch.empty(tokens.numel(), head.in_features, dtype=head.weight.dtype, device="meta", requires_grad=True)
    with LiveBytes() as live:
        values, _ = token_log_probs(policy.logits, states, tokens.flatten(), 1.0)
        values.sum().backward()
    return float(live.peak)


def _rollout(policy: Policy, prompts: PromptBatch, needs: Needs) -> tuple[float, float, float]:
    """Bytes that the prompts' forward holds and works with, of keys and values at the end, and of choosing tokens."""
    batch, width = prompts.tokens.shape
    with_graph = not (needs.sharded or policy.has_dropout)
    with torch.set_grad_enabled(with_graph), LiveBytes() as live:
        prefix = policy.prefill(prompts)
        working, kept = live.peak, live.now
    of_prompts, layers = _bytes((*prefix.keys, *prefix.values)), len(prefix.keys)
    rows = batch * needs.group_size
    # Room for the tokens of completions doubles from 64; a layer is there twice while its room grows.
    room = 64 * 2 ** math.ceil(math.log2(max(1.0, needs.completion_tokens / 64)))
    of_completions = of_prompts / (batch * width) * rows * room * (1 + 1 / layers)
    vocabulary = policy.base.config.get_text_config().vocab_size
    choosing = float(rows * vocabulary * _CHOOSING)
    # The prompts' forward comes first; what it leaves is kept. Keys and values of several prompts are laid out anew.
    cached = of_prompts * (2 if batch > 1 else 1) + of_completions
    return max(kept - of_prompts, working - cached - choosing), cached, choosing


def _gathered(policy: Policy, needs: Needs) -> tuple[float, float]:
    """Bytes that sharded weights take while they are whole: in rollouts all, in the policy's step some."""
    if not needs.sharded:
        return 0.0, 0.0
    width = getattr(torch, needs.compute_dtype).itemsize
    kinds = set(policy.base._no_split_modules or ())
    blocks = [
        sum(p.numel() for p in part.parameters()) for part in policy.base.modules() if type(part).__name__ in kinds
    ]
    whole = sum(parameter.numel() for parameter in policy.parameters())
    # A block is computed with while the next is fetched, and its gradients are summed in float32.
    largest = max(blocks, default=0)
    return float(whole * width), float((whole - sum(blocks) + 2 * largest) * width + 4 * largest)


def _bytes(values: Iterable[Tensor]) -> float:
    return float(sum(value.numel() * value.element_size() for value in values))
