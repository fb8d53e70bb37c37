"""Predicts memory by part, at the moments of a training at which most of it is allocated.

The runtime's own code runs on tensors without content; sizes that it decides come from it.

Shape letters: B prompts, P prompt tokens, G group size, C completion tokens, V vocabulary, D hidden size.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vr1.commands.plan.live_bytes import FourBitLinear, LiveBytes
from vr1.commands.plan.needs import Needs
from vr1.commands.plan.shapes import empty_policy, largest_prompts
from vr1.errors import UserError
from vr1.policy.free_memory import SHARE
from vr1.policy.logprobs import token_log_probs
from vr1.policy.policy import Policy
from vr1.policy.recomputation import Recomputation
from vr1.policy.reference import common_weights, copies_weights
from vr1.prompts import PromptBatch
from vr1.rollout.cache import GroupCache, cache_capacity
from vr1.rollout.decoder import make_decoder
from vr1.rollout.memory import rows_in
from vr1.rollout.sampling import Sampling, sampling_bytes
from vr1.types import Prefix

# Bytes of an NF4 weight, double quantized: 4 bits; an 8-bit scale for 64 weights; a float32 scale for 256 scales.
_FOUR_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)
# Bytes of a weight in the files of released models.
_RELEASED_WIDTH = 2


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """The memory of one process.

    Attributes:
        parameters: numbers of parameters: ``all``, ``trained``.
        moments: bytes by part, for each of ``rollout``, ``policy`` (forward and backward of the loss), ``update`` and
            ``validation``, where there is one.
        row_tokens: tokens of a prompt and all its completions, at most.
        rows: completions that are sampled at the same time, and those of all batches of an optimizer step.
        dequantized: bytes of dequantized copies of 4-bit weights, which a rollout with ``rollout_weights: auto`` takes
            beside its other parts where they fit; 0 where they are not wanted, or are among these parts already.
        host: bytes of weights on the host of a machine, of all its processes together, while they load and, with
            ``cpu_offload``, all the time; without Python itself and what data loaders need.
    """

    parameters: dict[str, int]
    moments: dict[str, dict[str, float]]
    row_tokens: int
    rows: tuple[int, int]
    host: float
    dequantized: float = 0.0

    @property
    def worst(self) -> str:
        """The moment of the peak."""
        return max(self.moments, key=lambda moment: sum(self.moments[moment].values()))

    @property
    def peak(self) -> float:
        """Bytes at that moment."""
        return sum(self.moments[self.worst].values())


def predict(needs: Needs, memory: float | None = None) -> MemoryPlan:
    """Predict the memory of a training, without its weights.

    All sizes are at their maximum: images at ``max_pixels``, completions at their limit.

    Args:
        needs: the settings.
        memory: bytes that are free on the device before anything is loaded, which decide how many completions a
            sampler with ``max_rows: auto`` samples at the same time; None: all.

    Raises:
        UserError: the policy does not share prompts; only policies that do can be predicted.
    """
    policy = empty_policy(needs)
    if not policy.shares_prompt:
        raise UserError(
            "only models whose completions share their prompt (Qwen-VL, InternVL, GLM-V, Griffon-G) can be planned;"
            " leave policy.share_prompt out, or measure this one in a run of one step (callbacks.Throughput logs its"
            " peak)"
        )
    prompts = largest_prompts(needs, needs.prompts)
    if needs.sharded and needs.mixed:
        # Weights are gathered in the precision of the computation; otherwise autocast converts them for each product.
        policy = policy.to(getattr(torch, needs.compute_dtype))
    with LiveBytes(_autocast(needs)) as live:
        seen = policy.with_image_features(prompts)
        features, tower = needs.accumulate * live.now, live.peak - live.now
    state = _training_state(policy, needs)
    activations, logits = _policy_step(policy, seen, needs)
    # Supervised training runs a frozen tower there too.
    activations = max(activations, tower - logits)
    gathered, blocks = _gathered(policy, needs)
    parameters = sum(value.numel() for name, value in policy.named_parameters() if "lora_" not in name)
    rollout, otherwise = needs.sampler.memory(needs.policy, needs.compute_dtype, parameters)
    validation = dict(rollout)
    # Between two steps there are no gradients.
    between = {part: size for part, size in state.items() if part != "gradients"}
    step = needs.accumulate * needs.prompts
    rows = step * needs.group_size
    if needs.sampler.computes_with_policy:
        free = None if memory is None else memory - sum(between.values()) - gathered - features
        with_graph = needs.accumulate == 1 and policy.can_reuse_prefix(needs.sharded)
        of_rollout, rows = _rollout(policy, needs, step, free, True, with_graph)
        rollout = {"gathered weights": gathered, **of_rollout}
        if needs.eval_prompts:
            validation = {"gathered weights": gathered, **_validation(policy, needs, free)}
        rollout["activations"] = max(rollout["activations"], tower - rollout["cache"] - rollout["logits"])
    copies = _dequantized(policy, needs)
    if needs.policy.rollout_weights == "dequantized":
        rollout["dequantized weights"] = copies
        validation["dequantized weights"] = copies
    moments = {
        "rollout": {**between, "image features": features, **rollout},
        "policy": {
            **state,
            **otherwise,
            "gathered weights": blocks,
            "image features": features,
            "activations": activations,
            "logits": logits,
        },
        # On a GPU AdamW updates all tensors at once, which takes one more value per parameter.
        "update": {**state, **otherwise, "activations": state["gradients"]},
    }
    if needs.eval_prompts:
        moments["validation"] = {**between, **validation}
    if needs.updates > 1:
        for parts in moments.values():
            parts["image features"] = features
    trained = [parameter.numel() for parameter in policy.parameters() if parameter.requires_grad]
    return MemoryPlan(
        parameters={"all": sum(parameter.numel() for parameter in policy.parameters()), "trained": sum(trained)},
        moments={moment: {part: size for part, size in parts.items() if size} for moment, parts in moments.items()},
        row_tokens=prompts.tokens.shape[1] + needs.trained_completions * needs.completion_tokens,
        rows=(rows, step * needs.group_size),
        dequantized=copies if needs.policy.rollout_weights == "auto" else 0.0,
        host=_host(policy, needs, state),
    )


def _dequantized(policy: Policy, needs: Needs) -> float:
    """Bytes of dequantized copies of 4-bit weights, as `vr1.rollout.weights.dequantized_bytes` counts them."""
    if not needs.sampler.computes_with_policy:
        return 0.0
    width = getattr(torch, needs.compute_dtype).itemsize
    return float(sum(part.weight.numel() * width for part in policy.modules() if isinstance(part, FourBitLinear)))


def _training_state(policy: Policy, needs: Needs) -> dict[str, float]:
    """Bytes of weights, gradients and optimizer states, which exist all the time after the first step."""
    stored = getattr(torch, needs.policy.dtype).itemsize
    sizes: dict[str, float] = defaultdict(float)
    packed = {id(part.weight) for part in policy.modules() if isinstance(part, FourBitLinear)}
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            sizes["adapters"] += parameter.numel() * 4
        else:
            sizes["weights"] += parameter.numel() * (_FOUR_BITS if id(parameter) in packed else stored)
    sizes["weights"] += sum(buffer.numel() * buffer.element_size() for buffer in policy.buffers())
    # peft stores adapters in float32, whatever the precision of the base.
    width = 4 if needs.policy.lora is not None else stored
    trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    sizes["gradients"] = trained * width
    sizes["optimizer"] = trained * _state_bytes(needs.optimizer, width)
    if needs.reference and copies_weights(policy):
        sizes["reference"] = sizes["weights"] - stored * _common(policy)
    if needs.sharded:
        share = 0 if needs.offload else 1 / needs.processes
        return {part: size * share for part, size in sizes.items()}
    if needs.processes > 1:
        sizes["buckets"] = sizes["gradients"]
    return dict(sizes)


def _common(policy: Policy) -> int:
    """Values of weights that a reference has in common with its policy."""
    return sum(weight.numel() for weight in common_weights(policy).values())


def _host(policy: Policy, needs: Needs, state: dict[str, float]) -> float:
    """Bytes of weights on the host of one machine.

    Without shards, each process loads the weights there, and copies those that are trained for a reference, before they
    move to its GPU. With shards, the processes share the pages of the files, of 16-bit weights as released, and hold
    their adapters.
    """
    processes = needs.processes / needs.machines
    base = sum(parameter.numel() for name, parameter in policy.named_parameters() if "lora_" not in name)
    adapters = sum(4 * parameter.numel() for name, parameter in policy.named_parameters() if "lora_" in name)
    if not needs.sharded:
        copied = base - _common(policy) if needs.reference and copies_weights(policy) else 0
        width = 2 if needs.policy.quantize else getattr(torch, needs.policy.dtype).itemsize
        return processes * ((base + copied) * width + adapters)
    offloaded = 0.0
    if needs.offload:
        stored = _training_state(policy, replace(needs, offload=False))
        offloaded = processes * sum(stored.values())
    return base * _RELEASED_WIDTH + processes * adapters + offloaded


def _state_bytes(optimizer: Any, width: int) -> float:
    """Bytes of optimizer state per parameter value, measured in a step on a small layer."""
    layer = nn.Linear(512, 512, bias=False, dtype=torch.float32 if width == 4 else torch.bfloat16)
    # Some optimizers treat vectors differently.
    layer.register_parameter("bias", nn.Parameter(torch.zeros(8)))
    built = optimizer(layer.named_parameters())
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    built.step()
    state = [value for value in built.state[layer.weight].values() if isinstance(value, Tensor) and value.numel() > 256]
    return sum(value.numel() * value.element_size() for value in state) / layer.weight.numel()


def _policy_step(policy: Policy, prompts: PromptBatch, needs: Needs) -> tuple[float, float]:
    """Bytes of activations and of logits in forward and backward, without weights and gradients."""
    tokens = torch.zeros(len(prompts), needs.trained_completions, needs.completion_tokens, dtype=torch.long)
    if needs.sharded:
        # A full gradient is freed as soon as each process has its shard, which `_training_state` counts.
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda full: setattr(full, "grad", None))
    with LiveBytes(_autocast(needs)) as live:
        log_probs, _ = policy.log_probs(prompts, tokens, torch.ones_like(tokens, dtype=torch.bool))
        forward = live.peak
        live.reset()
        log_probs.sum().backward()
        # `_training_state` counts gradients: none exist in forward, and all at the end of backward.
        grown = _bytes(parameter for parameter in policy.parameters() if parameter.grad is not None)
        peak = max(forward, live.peak) - grown
    logits = min(_logits(policy, tokens, needs), peak)
    for parameter in policy.parameters():
        parameter.grad = None
    return peak - logits, logits


def storing_layers(needs: Needs, plan: MemoryPlan, room: float) -> tuple[int, int]:
    """How many layers ``gradient_checkpointing: auto`` lets store their activations, at the largest sizes.

    A forward of a single prompt measures what one stores, as `vr1.policy.recomputation.Recomputation` does in training.

    Args:
        needs: the settings.
        plan: what is predicted for them, with all layers recomputing.
        room: bytes that tensors can use.

    Returns:
        Their number, and that of all layers of the language model.
    """
    one = replace(needs, prompts=1, policy=replace(needs.policy, gradient_checkpointing=True))
    policy = empty_policy(one)
    choice = Recomputation(policy.base.model.language_model.layers)
    tokens = torch.zeros(1, needs.trained_completions, needs.completion_tokens, dtype=torch.long)
    with LiveBytes(_autocast(needs)):
        prompts = policy.with_image_features(largest_prompts(one, 1))
        with choice.choose(room=1.0, tokens=1):
            policy.log_probs(prompts, tokens, torch.ones_like(tokens, dtype=torch.bool))
    assert choice.bytes_per_token is not None
    parts = plan.moments["policy"]
    state = sum(size for part, size in parts.items() if part not in ("activations", "logits", "gradients"))
    free = SHARE * (room - state) - (sum(parts.values()) - state)
    return min(choice.layers, max(0, int(free / (choice.bytes_per_token * needs.prompts)))), choice.layers


def _autocast(needs: Needs) -> torch.dtype | None:
    """The precision that autocast computes products in; None without autocast."""
    return getattr(torch, needs.compute_dtype) if needs.mixed else None


def _logits(policy: Policy, tokens: Tensor, needs: Needs) -> float:
    """Bytes of logits and of what is computed from them, in the chunks of `token_log_probs`."""
    head = policy.base.lm_head
    states = torch.empty(tokens.numel(), head.in_features, dtype=head.weight.dtype, device="meta", requires_grad=True)
    with LiveBytes(_autocast(needs)) as live:
        fixed = not any(weight.requires_grad for weight in head.parameters())
        values, _ = token_log_probs(policy.logits, states, tokens.flatten(), 1.0, fixed_head=fixed)
        values.sum().backward()
    return float(live.peak)


def _rollout(
    policy: Policy, needs: Needs, count: int, free: float | None, with_features: bool, with_graph: bool = False
) -> tuple[dict[str, float], int]:
    """Bytes of a rollout by part, and how many completions are sampled at the same time.

    Args:
        policy: without content.
        needs: the settings.
        count: prompts that are answered together, as far as they fit.
        free: bytes that decoding can take; None for no limit.
        with_features: whether image features are computed before, if the vision tower is frozen.
        with_graph: whether the first update uses the prefill too, which then has a graph.

    Returns:
        The weights that the decoder copies for the rollout, keys and values at the end of decoding, sampling a token,
        and the prefill beside the cache.
    """
    sampling = Sampling(
        group_size=needs.group_size,
        temperature=needs.temperature,
        top_p=needs.top_p,
        max_new_tokens=needs.completion_tokens,
    )
    fitting = None
    if free is not None:
        copies = _dequantized(policy, needs) if needs.policy.rollout_weights == "dequantized" else 0.0
        longest = largest_prompts(needs, 1).tokens.shape[1]
        fitting = rows_in(free - copies, policy, longest, sampling, getattr(torch, needs.compute_dtype))
    batch = max(map(len, needs.sampler.parts(count, needs.group_size, fitting)))
    prompts = largest_prompts(needs, batch)
    with torch.set_grad_enabled(with_graph), LiveBytes(_autocast(needs)) as live:
        if with_features:
            prompts = policy.with_image_features(prompts)
        features = live.now
        live.reset()
        prefix = policy.prefill(prompts)
        peak, after = live.peak - features, live.now - features
    stored, layers, width = (*prefix.keys, *prefix.values), len(prefix.keys), prefix.mask.shape[1]
    of_prompts, rows = _bytes(stored), batch * needs.group_size
    token = sum(part.numel() for part in stored) / (batch * width) * getattr(torch, needs.compute_dtype).itemsize
    # While the capacity grows, one layer has its old and its new memory.
    of_completions = token * rows * cache_capacity(needs.completion_tokens) * (1 + 1 / layers)
    logits = sampling_bytes(rows, policy.base.config.get_text_config().vocab_size, sampling)
    # The prefill comes first, and what it leaves stays. Keys and values of several prompts are copied to a new layout.
    cache = of_prompts * (2 if batch > 1 else 1) + of_completions
    earlier = after * (count / batch - 1) if with_graph else 0.0
    parts = {
        "prepared weights": _prepared(prefix, rows, needs),
        "cache": cache,
        "logits": logits,
        "activations": earlier + max(after - of_prompts, peak - cache - logits),
    }
    return parts, rows


@torch.no_grad()
def _prepared(prefix: Prefix, rows: int, needs: Needs) -> float:
    """Bytes of the weights that the decoder copies for a rollout, in the precision of the computation."""
    policy = empty_policy(needs)
    if needs.mixed:
        policy = policy.to(getattr(torch, needs.compute_dtype))
    # The cache is counted by `_rollout`.
    cache = GroupCache(prefix, needs.group_size)
    with LiveBytes() as live:
        decoder = make_decoder(policy, cache, rows)
        prepared = float(live.now)
    del decoder
    return prepared


def _validation(policy: Policy, needs: Needs, free: float | None) -> dict[str, float]:
    """Bytes of answering a batch of validation by part: a greedy rollout of one completion for each prompt."""
    of_validation = replace(needs, group_size=1, completion_tokens=needs.eval_tokens, temperature=0.0, top_p=1.0)
    return _rollout(policy, of_validation, needs.eval_prompts, free, with_features=False)[0]


def _gathered(policy: Policy, needs: Needs) -> tuple[float, float]:
    """Bytes of gathered weights of a sharded model: all of them in rollouts, some blocks in the policy's step."""
    if not needs.sharded:
        return 0.0, 0.0
    width = getattr(torch, needs.compute_dtype).itemsize
    blocks = [sum(parameter.numel() for parameter in block.parameters()) for block in policy.blocks]
    total = sum(parameter.numel() for parameter in policy.parameters())
    # One block computes while the next is gathered, and its gradients are summed in float32.
    largest = max(blocks, default=0)
    return float(total * width), float((total - sum(blocks) + 2 * largest) * width + 4 * largest)


def _bytes(values: Iterable[Tensor]) -> float:
    return float(sum(value.numel() * value.element_size() for value in values))
