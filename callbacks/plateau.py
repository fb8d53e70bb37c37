"""When does a metric stop improving? The settings, and the watch that decides it."""

import math
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """A logged metric has stopped improving.

    Args:
        monitor: name of a logged metric.
        patience: optimizer steps without an improvement after which the metric counts as flat.
        min_delta: a change of at most this much is no improvement.
        window: how many steps are averaged before values are compared, since rewards of single steps are noisy.
        mode: whether larger (``max``) or smaller (``min``) is better.

    Raises:
        ValueError: if a setting is out of its range.

    Example:
        >>> Plateau(monitor="reward/total", patience=50).window
        10
    """

    monitor: str
    patience: int
    min_delta: float = 0.0
    window: int = 10
    mode: Literal["max", "min"] = "max"

    def __post_init__(self) -> None:
        if not self.monitor:
            raise ValueError("on_plateau: monitor is empty: name a logged metric such as 'reward/total'")
        if self.patience < 1:
            raise ValueError(f"on_plateau: patience is {self.patience}: give at least 1 optimizer step")
        if self.window < 1:
            raise ValueError(f"on_plateau: window is {self.window}: give at least 1 step to average over")
        if not self.min_delta >= 0:
            raise ValueError(f"on_plateau: min_delta is {self.min_delta}: give 0 or more")
        if self.mode not in ("max", "min"):
            raise ValueError(f"on_plateau: mode is {self.mode!r}: choose 'max' or 'min'")


class PlateauWatch:
    """Follow one metric, value by value, until it is flat.

    Args:
        plateau: what counts as flat.
        since: optimizer step at which watching begins.

    Example:
        >>> watch = PlateauWatch(Plateau(monitor="reward/total", patience=2, window=1), since=0)
        >>> [watch.observe(value, step) for step, value in enumerate([1.0, 2.0, 2.0, 2.0], start=1)]
        [False, False, False, True]
    """

    def __init__(self, plateau: Plateau, since: int) -> None:
        self.plateau = plateau
        self.since = since
        self.values: list[float] = []
        self.best: float | None = None
        self.best_step = since

    def observe(self, value: float, step: int) -> bool:
        """Take the value of one optimizer step in; true when the metric has become flat."""
        if not math.isfinite(value):
            return False
        self.values = [*self.values, value][-self.plateau.window :]
        if len(self.values) < self.plateau.window:
            return False
        mean = math.fsum(self.values) / len(self.values)
        gain = math.inf if self.best is None else mean - self.best
        if self.best is not None and self.plateau.mode == "min":
            gain = -gain
        if gain > self.plateau.min_delta:
            self.best, self.best_step = mean, step
        return step - self.best_step >= self.plateau.patience

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`observe` depends on, in plain types."""
        return {"since": self.since, "values": self.values, "best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up watching where a saved watch stood."""
        self.since, self.best, self.best_step = state["since"], state["best"], state["best_step"]
        self.values = list(state["values"])[-self.plateau.window :]
