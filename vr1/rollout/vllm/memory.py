"""The memory of an engine, from the model's configuration alone."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from vr1.policy.loading import PolicySource
from vr1.rollout.memory import bytes_per_token

__all__ = ["EngineMemory", "cache_bytes_per_token", "engine_memory", "parameter_count"]

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """Bytes of one engine.

    Attributes:
        weights: of the whole model, in the engine's precision.
        adapters: of the slot for one adapter.
        cache: of keys and values.
    """

    weights: float
    adapters: float
    cache: float

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return self.weights + self.adapters + self.cache


def engine_memory(source: PolicySource, dtype: str, cache_gib: float, parameters: int | None = None) -> EngineMemory:
    """The memory of an engine.

    Args:
        source: the policy that it samples from.
        dtype: the engine's precision, as a name of torch.
        cache_gib: memory for keys and values.
        parameters: number of the model's parameters without adapters; None counts them.
    """
    width = getattr(torch, dtype).itemsize
    counted = parameter_count(source) if parameters is None else parameters
    return EngineMemory(
        weights=float(counted * width), adapters=float(_adapter_count(source) * width), cache=cache_gib * GIB
    )


def parameter_count(source: PolicySource) -> int:
    """Number of parameters of the model of a policy, without its weights and adapters."""
    with torch.device("meta"):
        network: Any = AutoModelForImageTextToText.from_config(source.config())
    return sum(parameter.numel() for parameter in network.parameters())


def cache_bytes_per_token(source: PolicySource, dtype: str) -> int:
    """Bytes of the keys and values of one token, in all layers.

    Example:
        >>> cache_bytes_per_token(PolicySource(), "float32")
        2560
    """
    return bytes_per_token(source.config().get_text_config(), getattr(torch, dtype))


def _adapter_count(source: PolicySource) -> int:
    """An upper bound of the parameters of the adapters: of every linear layer named, as wide as the widest one."""
    if source.lora is None:
        return 0
    text = source.config().get_text_config()
    widest = text.hidden_size + max(text.intermediate_size, text.hidden_size)
    return int(text.num_hidden_layers * len(source.lora.targets) * source.lora.rank * widest)
