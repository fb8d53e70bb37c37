"""What rollouts multiply with where the weights are stored in 4 bits: these, or 16-bit copies for as long as one lasts.

bitsandbytes dequantizes most weights for every product of few rows, hence for every token. Dequantizing all of them
once a rollout costs as much as one token and makes every later token a plain product, but takes four times their memory
meanwhile.

Shape letters: C completion tokens.
"""

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from transformers import AutoModelForImageTextToText

from vr1.errors import UserError
from vr1.policy.free_memory import free_bytes
from vr1.policy.loading import UNQUANTIZED, PolicySource
from vr1.policy.patches import four_bit_layers
from vr1.policy.policy import Policy
from vr1.rollout.cache import cache_capacity
from vr1.rollout.linear import compute_dtype
from vr1.rollout.sampling import Sampling, sampling_bytes
from vr1.types import Prefix

__all__ = ["RolloutWeights", "cache_bytes", "dequantized_bytes", "quantized_weights"]

_GIB = 2**30
# Free memory that the allocator cannot use because of fragmentation.
_FRAGMENTATION = 0.05


class RolloutWeights:
    """Decides whether the 4-bit weights of a policy are dequantized for its rollouts, and says so once.

    ``auto`` dequantizes where the free memory holds the dequantized weights and everything else that decoding
    allocates (`dequantized_bytes`, `cache_bytes`, `vr1.rollout.sampling.sampling_bytes`); ``vr1 plan`` prints the same
    numbers. Where a later, larger rollout has no room for them, this and all further rollouts use the 4-bit weights.
    """

    def __init__(self) -> None:
        self._choice: bool | None = None

    def choose(self, policy: Policy, prefix: Prefix, sampling: Sampling, runs_layers: bool) -> bool:
        """Whether to dequantize for a rollout that is about to start.

        Args:
            policy: the policy, whose setting `Policy.rollout_weights` is followed.
            prefix: its prefill of the prompts.
            sampling: how completions are sampled.
            runs_layers: vr1's own decoder runs the layers; transformers uses the weights as they are.

        Raises:
            UserError: the setting is ``dequantized``, and this is impossible or the memory does not suffice.
        """
        setting = policy.rollout_weights
        weights = 0 if setting == "quantized" else dequantized_bytes(policy)
        if not weights or self._choice is False:
            return False
        if not runs_layers:
            if setting == "dequantized":
                raise UserError(
                    f"policy.rollout_weights=dequantized: the layers of a {policy.base.config.model_type} model are run"
                    " by transformers, with the weights as they are stored; leave it out"
                )
            return self._chosen(False, "transformers runs the layers of this model")
        group, limit = sampling.group_size, sampling.max_new_tokens
        logits = sampling_bytes(len(prefix.mask) * group, policy.base.lm_head.out_features, sampling)
        rest = cache_bytes(prefix, group, limit) + logits
        free = free_bytes(prefix.state.device)
        numbers = (
            f"dequantized weights take {weights / _GIB:.2f} GiB and decoding {rest / _GIB:.2f} beside them,"
            f" {free / _GIB:.2f} GiB are free on {prefix.state.device}"
        )
        if weights + rest <= free * (1 - _FRAGMENTATION):
            return self._chosen(True, numbers)
        if setting == "dequantized":
            raise UserError(f"policy.rollout_weights=dequantized: {numbers}; set it to quantized or auto")
        return self._chosen(False, numbers)

    def reserved(self, policy: Policy) -> int:
        """Bytes of dequantized weights that the next rollout will take, as far as this is decided."""
        decided = policy.rollout_weights == "dequantized" or self._choice is True
        return dequantized_bytes(policy) if decided else 0

    def _chosen(self, dequantize: bool, reason: str) -> bool:
        if self._choice is not dequantize:
            rank_zero_info(f"rollout weights: {'dequantized' if dequantize else 'quantized'} ({reason})")
        self._choice = dequantize
        return dequantize


def check_room(source: PolicySource, dtype: str, device: torch.device) -> None:
    """Check before any weights are loaded that a device can hold them beside their dequantized copies.

    Args:
        source: the policy.
        dtype: precision of its forward, as a name of torch.
        device: where it will be.

    Raises:
        UserError: ``rollout_weights`` is ``dequantized`` and the memory is too small.
    """
    if source.rollout_weights != "dequantized":
        return
    packed, other = quantized_weights(source)
    stored = packed // 2 + other * getattr(torch, source.dtype).itemsize
    copies = packed * getattr(torch, dtype).itemsize
    free = free_bytes(device)
    if stored + copies > free:
        raise UserError(
            f"policy.rollout_weights=dequantized: 4-bit weights and their dequantized copies take"
            f" {(stored + copies) / _GIB:.2f} GiB, and {free / _GIB:.2f} are free on {device}; set it to quantized or"
            " auto"
        )


def quantized_weights(source: PolicySource) -> tuple[int, int]:
    """How many weights of a model ``quantize`` stores in 4 bits, and how many it leaves as they are.

    Args:
        source: the policy; its config is read, no weights.

    Example:
        >>> quantized_weights(PolicySource())
        (1966080, 2127840)
    """
    with torch.device("meta"):
        network = AutoModelForImageTextToText.from_config(source.config())
    packed = sum(
        layer.weight.numel()
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and not any(f"{name}.".startswith(f"{skip}.") for skip in UNQUANTIZED)
    )
    return packed, sum(parameter.numel() for parameter in network.parameters()) - packed


def dequantized_bytes(policy: Policy) -> int:
    """Bytes of a policy's 4-bit weights in the precision of their products; 0 without any."""
    layers = four_bit_layers(policy.base).values()
    return sum(layer.in_features * layer.out_features * compute_dtype(layer).itemsize for layer in layers)


def cache_bytes(prefix: Prefix, group: int, tokens: int) -> float:
    """Bytes of keys and values of completions at the end of decoding.

    Args:
        prefix: the prompts.
        group: completions of each.
        tokens: of each completion.

    Example:
        >>> keys = [torch.empty(1, 2, 5, 4, device="meta") for _ in range(3)]
        >>> prefix = Prefix(keys=keys, values=keys, state=torch.empty(1, 8), mask=torch.ones(1, 5), next_position=None)
        >>> cache_bytes(prefix, group=2, tokens=64) == 2 * 64 * 2 * 4 * 4 * 2 * (3 + 1)
        True
    """
    of_prompts = sum(part.numel() * part.element_size() for part in (*prefix.keys, *prefix.values))
    # While the capacity grows, one layer has its old and its new memory.
    return of_prompts / prefix.mask.shape[1] * group * cache_capacity(tokens) * (1 + 1 / len(prefix.keys))
