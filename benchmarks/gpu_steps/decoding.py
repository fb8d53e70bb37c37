"""Seconds a token of decoding, by rows and by how the weights are held, against what reading the weights takes.

Three ways: by the layers of transformers, by vr1's own decoder, and by a graph of its step. Keys and values of the
prompts are random: what they hold changes no time.
"""

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_steps.models import Variant, random_policy
from gpu_steps.run import Bench
from vr1.policy import Policy
from vr1.policy.patches import four_bit_layers
from vr1.rollout import Sampling, shared
from vr1.rollout.decoder import ModelDecoder
from vr1.rollout.graphs import StepGraphs
from vr1.rollout.kernels import Kernels
from vr1.rollout.weights import dequantized_bytes
from vr1.types import Prefix

_GROUP = 8
# Dispatched operators whose result the host waits for.
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "_unique2", "unique_consecutive"}


class CountDispatches(TorchDispatchMode):
    """Counts operators by name, and those that make the host wait for a device.

    Example:
        >>> with CountDispatches() as count:
        ...     _ = torch.ones(2).add(1).sum().item()
        >>> count.waits
        1
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        result = func(*args, **(kwargs or {}))
        # Views launch nothing on a device. Operators such as `to` and `reshape` are called views, and copy or not.
        if not func.is_view or not _is_view(result, args):
            self.calls[name] += 1
        masks = name in ("index", "index_put", "index_put_") and any(
            isinstance(part, Tensor) and part.dtype == torch.bool for part in args[1]
        )
        self.waits += name in _WAITS or masks
        return result


def _is_view(result: Any, args: Any) -> bool:
    """Whether an operator has returned memory of its first argument."""
    parts = result if isinstance(result, (list, tuple)) else [result]
    return all(part.untyped_storage()._cdata == args[0].untyped_storage()._cdata for part in parts)


def run(bench: Bench) -> None:
    """Measure."""
    large = bench.device == "cuda"
    nf4 = Variant(lora=True, nf4=True)
    variants = {
        Variant(lora=True): (8, 32, 128),
        Variant(): (8, 32),
        replace(nf4, dequantized=True): (8, 32),
        nf4: (8,),
    }
    for number, (variant, all_rows) in enumerate(variants.items()):
        if bench.has(variant.name) or (variant.nf4 and not large):
            continue
        with bench.part(variant.name):
            policy = random_policy(bench, variant).eval().requires_grad_(False)
            found: dict[str, Any] = {"weight_bytes": _weight_bytes(policy, variant.dequantized)}
            for rows in all_rows if large else (8,):
                own = _Measurement(bench, policy, rows, found["weight_bytes"])
                found[f"{rows} rows"] = own.graph() if large else own.eager()
                bench.record(**{variant.name: found})
            if number == 0:
                found["8 rows, more"] = _Measurement(bench, policy, 8, found["weight_bytes"]).more()
                bench.record(**{variant.name: found})


class _Measurement:
    """Decoding with one number of rows."""

    def __init__(self, bench: Bench, policy: Policy, rows: int, weight_bytes: float) -> None:
        self.bench, self.policy, self.rows, self.weight_bytes = bench, policy, rows, weight_bytes
        self.prefix = random_prefix(policy, rows // _GROUP, 1095 if bench.device == "cuda" else 64, bench)
        self.lengths = (4, 20) if bench.device == "cuda" else (2, 6)

    def more(self) -> dict[str, Any]:
        """Other ways to decode the same, and what is launched and waited for with each token."""
        found: dict[str, Any] = {"eager": self.eager() | _launches(self.bench, self._decode, 2, 6)}
        if self.bench.device == "cuda":
            found["graph, torch's operators"] = self.graph(kernels=False)
        return found | {"layers of transformers": self.transformers()}

    def eager(self) -> dict[str, Any]:
        """Milliseconds a token, and the bound."""
        return self._times(self._decode, *self.lengths)

    def transformers(self) -> dict[str, Any]:
        """The same with the layers' own forward, as of models that vr1's decoder does not know."""
        before = shared.make_decoder
        shared.make_decoder = lambda policy, cache, *_: ModelDecoder(policy, cache)
        try:
            return self._times(self._decode, *self.lengths)
        finally:
            shared.make_decoder = before

    def graph(self, kernels: bool = True) -> dict[str, Any] | str:
        """The same by a graph of the step; both lengths are captured once, within the first capacity of the cache."""
        graphs, own = StepGraphs(), Kernels() if kernels else None

        def decode(tokens: int) -> None:
            self._decode(tokens, graphs, own)

        found = self._times(decode, 32, 96)
        if graphs.failure is not None:
            return f"failed: {graphs.failure}"
        if own is not None and own.failure is not None:
            found["kernels failed"] = own.failure
        return found | {"kernels": kernel_times(lambda: decode(96))}

    def _decode(self, tokens: int, graphs: StepGraphs | None = None, kernels: Kernels | None = None) -> None:
        uniform = torch.rand(self.rows, tokens, device=self.bench.device, dtype=torch.float64)
        sampling = Sampling(group_size=_GROUP, max_new_tokens=tokens)
        with torch.inference_mode():
            shared.decode_shared(self.policy, self.prefix, sampling, uniform, graphs=graphs, kernels=kernels)

    def _times(self, decode: Callable[[int], None], short: int, long: int) -> dict[str, Any]:
        # The difference leaves out what is done once a rollout, such as a capture, which takes the host an uneven time:
        # the least of three is the nearest to that of the device.
        times = []
        for tokens in (short, long):
            decode(tokens)
            times.append(min(self.bench.seconds(decode, tokens, repeats=1, warmup=0) for _ in range(3)))
        token = (times[1] - times[0]) / (long - short)
        cache = sum(part.numel() * part.element_size() for part in (*self.prefix.keys, *self.prefix.values))
        found: dict[str, Any] = {"ms_per_token": 1e3 * token, "once_ms": 1e3 * (times[0] - short * token)}
        hardware = self.bench.results.get("hardware", {})
        rates = [hardware.get(f"{what}_gb_per_second") for what in ("copy", "read")]
        if rates := [rate for rate in rates if isinstance(rate, float)]:
            bound = (self.weight_bytes + cache) / (max(rates) * 1e9)
            found |= {"bound_ms": 1e3 * bound, "times_the_bound": token / bound}
        return found


def _launches(bench: Bench, decode: Any, short: int, long: int) -> dict[str, float]:
    """Operators, kernels and waits of the host for each token."""
    counts = []
    for tokens in (short, long):
        with CountDispatches() as count:
            decode(tokens)
        counts.append((sum(count.calls.values()), count.waits))
    steps = long - short
    found = {
        "dispatches_per_token": (counts[1][0] - counts[0][0]) / steps,
        "waits_per_token": (counts[1][1] - counts[0][1]) / steps,
    }
    if bench.device == "cuda":
        waits, kernels = [], []
        for tokens in (short, long):
            torch.cuda.set_sync_debug_mode("warn")
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    decode(tokens)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            waits.append(sum("synchroniz" in str(item.message) for item in caught))
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                decode(tokens)
                bench.synchronize()
            kernels.append(sum(event.count for event in profile.key_averages() if event.self_device_time_total > 0))
        found |= {
            "synchronisations_per_token": (waits[1] - waits[0]) / steps,
            "kernels_per_token": (kernels[1] - kernels[0]) / steps,
        }
    return found


def kernel_times(work: Callable[[], Any]) -> dict[str, float]:
    """`longest_kernels` of a function."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    return longest_kernels(profile)


def longest_kernels(profile: torch.profiler.profile, longest: int = 45) -> dict[str, float]:
    """Milliseconds of the kernels that take longest, by their shortened names with the number of their launches.

    Args:
        profile: has ended.
        longest: how many; the sum of all comes before them.
    """
    events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    found = {"all": sum(event.self_device_time_total for event in events) / 1e3}
    return found | {
        f"{event.key[:90]} x{event.count}": event.self_device_time_total / 1e3 for event in events[:longest]
    }


def random_prefix(policy: Policy, prompts: int, length: int, bench: Bench) -> Prefix:
    """Keys, values and states of prompts of one length, of random numbers."""
    text = policy.base.config.get_text_config()
    width = text.hidden_size // text.num_attention_heads
    shape = (prompts, text.num_key_value_heads, length, width)

    def layers() -> list[Tensor]:
        return [torch.randn(shape, device=bench.device, dtype=bench.dtype) for _ in range(text.num_hidden_layers)]

    return Prefix(
        keys=layers(),
        values=layers(),
        state=torch.randn(prompts, text.hidden_size, device=bench.device, dtype=bench.dtype),
        mask=torch.ones(prompts, length, dtype=torch.bool, device=bench.device),
        next_position=torch.full((prompts,), length, device=bench.device),
    )


def _weight_bytes(policy: Policy, dequantized: bool) -> float:
    """Bytes of the weights that every token reads: the language model's layers and the head.

    Args:
        policy: of these weights.
        dequantized: whether packed ones are read as 16-bit copies; otherwise as they are stored.
    """
    parts = [*policy.base.model.language_model.layers.parameters(), *policy.base.lm_head.parameters()]
    size = sum(part.numel() * part.element_size() for part in parts)
    if dequantized:
        packed = sum(layer.weight.numel() for layer in four_bit_layers(policy.base).values())
        size += dequantized_bytes(policy) - packed
    return float(size)
