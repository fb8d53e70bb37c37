"""Whether vr1's kernels are used: where they can be compiled, and their results are those of torch's operators."""

import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import silu

from vr1.cpu_kernels.library import compiler
from vr1.policy.attention import Scores
from vr1.policy.products import autocast_dtype, without_autocast
from vr1.rollout.cache import GroupCache, LayerKernels, StaticGroupCache
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

    Attention of single completions, and of groups that take whole blocks of queries; then a norm and a gate.

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

    groups = (1, -(-64 * kv_heads // heads))
    compared = [_compare_attention(random, group, heads, kv_heads, width) for group in groups]
    differences, kernels = [difference for difference, _ in compared], compared[0][1]
    states, weight, gate, up = (random(4, 3, 300)[:, 0] for _ in range(4))
    states = states.contiguous()
    expected = torch.nn.functional.rms_norm(states.float(), (300,), weight[0].float(), 1e-6)
    differences.append(_difference(expected, kernels.rms_norm(states, weight[0], 1e-6)))
    differences.append(_difference(silu(gate.float()) * up.float(), kernels.gated(gate, up)))
    return max(differences)


def _compare_attention(
    random: Callable[..., Tensor], group: int, heads: int, kv_heads: int, width: int
) -> tuple[float, LayerKernels]:
    """Two prompts, one of them padded, of which a row ends after two tokens; with the kernels of the layer's rest."""
    prompts, length = 2, 70
    keys, values = (random(prompts, kv_heads, length, width) for _ in range(2))
    mask = torch.ones(prompts, length, dtype=torch.bool, device=keys.device)
    mask[1, :7] = False
    prefix = Prefix(keys=[keys], values=[values], state=random(prompts, width), mask=mask, next_position=mask.sum(1))
    caches = StaticGroupCache(prefix, group), kernel_cache(keys.device)(prefix, group)
    scores, rows, differences = Scores(width**-0.5), prompts * group, []
    for token in range(4):
        if token == 2:
            rows -= 1
            for cache in caches:
                cache.select(torch.arange(rows, device=keys.device))
        new, cosine, sine = (random(rows, count, width) for count in (heads + 2 * kv_heads, 1, 1))
        results = [cache.rotate_and_attend(0, new.clone(), cosine, sine, scores) for cache in caches]
        differences.append(_difference(*results))
    assert caches[1].layer_kernels is not None
    return max(differences), caches[1].layer_kernels


def _difference(expected: Tensor, found: Tensor) -> float:
    return float((expected.float() - found.float()).norm() / expected.float().norm())
