"""Whether vr1's kernels are used: where they can be compiled, and their results are those of torch's operators."""

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu

from vr1.cpu_kernels.decoding import LayerWeights, Network, Norm, Product
from vr1.cpu_kernels.library import compiler
from vr1.policy.attention import Scores
from vr1.policy.products import autocast_dtype, without_autocast
from vr1.rollout.cache import GroupCache, StaticGroupCache
from vr1.rollout.kernels.cache import KernelGroupCache
from vr1.rollout.kernels.cpu import CpuKernelCache
from vr1.types import Prefix

__all__ = ["Kernels", "compare", "kernel_cache"]

# Head widths of the kernels of a GPU; those of a CPU take any multiple of 16.
_WIDTHS = (16, 32, 64, 128)
# Largest relative differences that rounding explains. Whatever reads or writes in a wrong place differs by far more.
_BOUNDS = {torch.float32: 5e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}


def kernel_cache(device: torch.device) -> type[GroupCache]:
    """The cache of a rollout on a device that is computed by kernels."""
    return KernelGroupCache if device.type == "cuda" else CpuKernelCache


class Kernels:
    """Decides for each kind of model, once a process, whether its decoding steps use vr1's kernels.

    Attributes:
        failure: why they are not used any more; None while they are.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        self._tried: set[tuple[object, ...]] = set()

    def fit(self, prefix: Prefix, heads: int) -> bool:
        """Whether the kernels are to be used; tries them the first time, and says once why they cannot be.

        Args:
            prefix: keys and values of the prompts of a rollout.
            heads: query heads of a layer.
        """
        device = prefix.keys[0].device
        _, kv_heads, _, width = prefix.keys[0].shape
        dtype = autocast_dtype(device.type) or prefix.keys[0].dtype
        if self.failure is not None or not _written_for(device, width, dtype):
            return False
        kind = (heads, kv_heads, width, dtype, device)
        if kind in self._tried:
            return True
        if device.type == "cuda" and find_spec("triton") is None:
            self._give_up("Triton is not installed")
            return False
        try:
            with without_autocast(device.type):
                difference = compare(heads, kv_heads, width, dtype, device)
        except Exception as error:
            # Whatever a compiler says: the rollout goes on without, and the reason is shown.
            self.give_up(error)
            return False
        # Not "above": a difference that is no number is too large.
        if not difference <= _BOUNDS[dtype]:
            self._give_up(f"their results differ from torch's by {difference:.2g}, {_BOUNDS[dtype]} is allowed")
            return False
        self._tried.add(kind)
        return True

    def errors(self) -> tuple[type[Exception], ...]:
        """What is raised where a kernel cannot be compiled or launched, as for shapes that were not tried."""
        if find_spec("triton") is None:
            return ()
        from triton.errors import TritonError

        return (TritonError,)

    def give_up(self, error: Exception) -> None:
        """Use torch's operators from now on, and say why."""
        reason = str(error).strip().splitlines() or [""]
        self._give_up(f"{type(error).__name__}: {reason[0]}")

    def _give_up(self, reason: str) -> None:
        self.failure = reason
        warnings.warn(f"decoding kernels: {reason}; decoding goes on without them, which is slower", stacklevel=3)


def _written_for(device: torch.device, width: int, dtype: torch.dtype) -> bool:
    """Whether there are kernels for heads of a width; those of a CPU are not missed where there is no compiler."""
    if device.type == "cuda":
        return width in _WIDTHS and dtype in _BOUNDS
    return device.type == "cpu" and width % 16 == 0 and dtype == torch.float32 and compiler() is not None


@torch.no_grad()
def compare(heads: int, kv_heads: int, width: int, dtype: torch.dtype, device: torch.device) -> float:
    """The largest relative difference between the kernels and torch's operators, on random numbers.

    Args:
        heads: H.
        kv_heads: K.
        width: E.
        dtype: of keys, values and states.
        device: where the kernels run.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    # Single completions, and groups that take whole blocks of queries.
    groups = (1, -(-64 * kv_heads // heads))
    if kernel_cache(device) is CpuKernelCache:
        return max(_compare_steps(random, group, heads, kv_heads, width) for group in groups)
    differences = [_compare_attention(random, group, heads, kv_heads, width) for group in groups]
    return max(*differences, *_compare_layers(random))


def _prompts(random: Callable[..., Tensor], kv_heads: int, width: int) -> Prefix:
    """Two prompts, of which one is padded."""
    keys, values = (random(2, kv_heads, 70, width) for _ in range(2))
    mask = torch.ones(2, 70, dtype=torch.bool, device=keys.device)
    mask[1, :7] = False
    return Prefix(keys=[keys], values=[values], state=random(2, width), mask=mask, next_position=mask.sum(1))


def _compare_attention(random: Callable[..., Tensor], group: int, heads: int, kv_heads: int, width: int) -> float:
    """Attention of two prompts' completions, of which one ends after two tokens."""
    prefix = _prompts(random, kv_heads, width)
    caches = StaticGroupCache(prefix, group), KernelGroupCache(prefix, group)
    scores, rows, differences = Scores(width**-0.5), 2 * group, []
    for token in range(4):
        if token == 2:
            rows -= 1
            for cache in caches:
                cache.select(torch.arange(rows, device=prefix.mask.device))
        new, cosine, sine = (random(rows, count, width) for count in (heads + 2 * kv_heads, 1, 1))
        results = [cache.rotate_and_attend(0, new.clone(), cosine, sine, scores) for cache in caches]
        differences.append(_difference(*results))
    return max(differences)


def _compare_layers(random: Callable[..., Tensor]) -> list[float]:
    """A norm and a gate."""
    from vr1.rollout.kernels import layers

    states, weight, gate, up = (random(4, 3, 300)[:, 0] for _ in range(4))
    states = states.contiguous()
    normed = rms_norm(states.float(), (300,), weight[0].float(), 1e-6)
    return [
        _difference(normed, layers.rms_norm(states, weight[0], 1e-6)),
        _difference(silu(gate.float()) * up.float(), layers.gated(gate, up)),
    ]


def _compare_steps(random: Callable[..., Tensor], group: int, heads: int, kv_heads: int, width: int) -> float:
    """Steps of a layer and a head on a CPU, for two prompts' completions, of which one ends after two tokens."""
    hidden, feed_forward, vocabulary, total = 40, 24, 20, heads + 2 * kv_heads
    sizes = {
        "qkv": (total * width, hidden),
        "output": (hidden, heads * width),
        "gate": (feed_forward, hidden),
        "up": (feed_forward, hidden),
        "down": (hidden, feed_forward),
        "head": (vocabulary, hidden),
    }
    weights = {name: random(*size) / size[1] ** 0.5 for name, size in sizes.items()}
    bias, norms, epsilon = random(total * width), [random(hidden) for _ in range(3)], 1e-6
    parts: dict[str, Any] = {name: Product(weight) for name, weight in weights.items()}
    parts |= {"qkv": Product(weights["qkv"], bias)}
    head, norm, scaling = parts.pop("head"), [Norm(weight, epsilon) for weight in norms], width**-0.5
    layer = LayerWeights(attention_norm=norm[0], mlp_norm=norm[1], **parts, scaling=scaling)
    network = Network([layer], norm[2], head, heads, kv_heads, width)

    prefix = _prompts(random, kv_heads, width)
    plain, own, rows, differences = GroupCache(prefix, group), CpuKernelCache(prefix, group), 2 * group, []
    for token in range(4):
        if token == 2:
            rows -= 1
            for cache in (plain, own):
                cache.select(torch.arange(rows))
        states, cosine, sine = random(rows, hidden), random(rows, 1, width), random(rows, 1, width)
        found = network.step(states, *own.add_token(cosine, sine))
        qkv = linear(rms_norm(states, (hidden,), norms[0], epsilon), weights["qkv"], bias).view(rows, total, width)
        states = states + linear(plain.rotate_and_attend(0, qkv, cosine, sine, Scores(scaling)), weights["output"])
        normed = rms_norm(states, (hidden,), norms[1], epsilon)
        states = states + linear(silu(linear(normed, weights["gate"])) * linear(normed, weights["up"]), weights["down"])
        differences.append(_difference(linear(rms_norm(states, (hidden,), norms[2], epsilon), weights["head"]), found))
    return max(differences)


def _difference(expected: Tensor, found: Tensor) -> float:
    return float((expected.float() - found.float()).norm() / expected.float().norm())
