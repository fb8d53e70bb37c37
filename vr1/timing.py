"""Which part of a training step is running, how long each has taken, and how many tokens it was about."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StepTimer:
    """Seconds by part of the work, since the beginning of the run.

    Attributes:
        part: the part that is running, or in which an error was raised; what is in none of them is ``policy``.
        seconds: wall time by part that has ended, without ``policy``.
        tokens: completion tokens that training steps were about.

    Example:
        >>> timer = StepTimer()
        >>> with timer.measure("rollout"):
        ...     timer.part
        'rollout'
        >>> timer.part, [*timer.seconds]
        ('policy', ['rollout'])
    """

    def __init__(self) -> None:
        self.part, self.tokens = "policy", 0
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Count the time within the block as that of ``part``."""
        started, self.part = _now(), part
        yield
        # Not after an error: whoever handles it wants to know in which part it was.
        self.seconds[part] += _now() - started
        self.part = "policy"


def _now() -> float:
    # A GPU works on behind: what was started in one part would be waited for in another.
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
