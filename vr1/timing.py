"""Which part of a training step is running, how long each part has taken, and how many tokens were trained on."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StepTimer:
    """Seconds by part of the training step, since the start of the run.

    Attributes:
        part: the part that is running, or in which an error was raised; ``policy`` outside all measured parts.
        seconds: wall time of each measured part.
        tokens: completion tokens that were trained on.

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
        """Add the wall time of the block to ``part``."""
        started, self.part = _now(), part
        yield
        # Not in a finally block: after an error, `part` still names where it was raised.
        self.seconds[part] += _now() - started
        self.part = "policy"


def _now() -> float:
    # A GPU runs asynchronously: without this, work that one part starts would be measured in another.
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
