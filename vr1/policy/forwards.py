"""Another forward for single modules of a model, whose class keeps its name, its base classes and its attributes."""

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["replace_forward"]


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Change the forward of a module in place, and of no other module of its class.

    The module can be copied and pickled. Its attribute ``replaced`` is the class that it had; a module that has this
    forward already stays as it is.

    Args:
        module: any module.
        forward: a function of a module of Python, with ``self`` as its first argument.

    Example:
        >>> def double(self, x):
        ...     return 2 * self.replaced.forward(self, x)
        >>> layer = nn.Identity()
        >>> replace_forward(layer, double)
        >>> layer(3), type(layer).__name__, isinstance(layer, nn.Identity)
        (6, 'Identity', True)
    """
    kind = type(module)
    if kind.forward is not forward:
        module.__class__ = _with_forward(kind, forward)


_CLASSES: dict[tuple[type, Callable[..., Any]], Any] = {}


def _with_forward(kind: type, forward: Callable[..., Any]) -> Any:
    """One class for each pair, so that instances can be compared by it."""
    if (kind, forward) not in _CLASSES:
        own = {"forward": forward, "replaced": kind, "__reduce__": _reduce, "__module__": kind.__module__}
        _CLASSES[kind, forward] = type(kind.__name__, (kind,), own)
    return _CLASSES[kind, forward]


def _reduce(self: Any) -> tuple[Any, ...]:
    # Pickle would look for the class by its name, and find the one that was replaced.
    return _made, (type(self).replaced, type(self).forward), self.__getstate__()


def _made(kind: type, forward: Callable[..., Any]) -> Any:
    own = _with_forward(kind, forward)
    return own.__new__(own)
