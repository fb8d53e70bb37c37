"""Whether a network computes the same twice."""

from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["drops_values"]


def drops_values(network: nn.Module, settings: Mapping[str, Any]) -> bool:
    """Whether a network sets some of its values to 0 at random in training mode.

    Some parts have dropout layers; others, such as attention, read a probability from their config.

    Args:
        network: with its adapters, if any.
        settings: its config of transformers, with those of its parts in it.

    Example:
        >>> drops_values(nn.Dropout(0.0), {}), drops_values(nn.Dropout(0.1), {})
        (False, True)
        >>> drops_values(nn.Linear(2, 2), {"text_config": {"attention_dropout": 0.1}})
        True
    """
    return any(isinstance(part, nn.Dropout) and part.p > 0 for part in network.modules()) or _has_dropout(settings)


def _has_dropout(settings: Mapping[str, Any]) -> bool:
    """Whether a setting named after dropout is a number above 0, in a config or in those of its parts."""
    return any(
        _has_dropout(value)
        if isinstance(value, Mapping)
        else "drop" in str(name) and isinstance(value, int | float) and value > 0
        for name, value in settings.items()
    )
