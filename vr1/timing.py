"""Which part of a training step is running, how long each part has taken, and how many tokens were trained on.

A GPU works behind the host. There, a time is taken between two events on its stream, which costs next to nothing; only
reading the time waits until the GPU has reached the second event.
"""

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Interval:
    """The time from its creation to `stop`.

    Example:
        >>> interval = Interval()
        >>> interval.stop()
        >>> interval.has_ended, interval.seconds >= 0
        (True, True)
    """

    def __init__(self) -> None:
        self._on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        self._start = self._now()
        self._end: float | torch.cuda.Event | None = None

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def stop(self) -> None:
        """End the interval here: on a GPU, behind the work that was started before."""
        self._end = self._now()

    @property
    def has_ended(self) -> bool:
        """Whether `seconds` is known without waiting for a GPU."""
        return self._end is not None and (isinstance(self._end, float) or self._end.query())

    @property
    def seconds(self) -> float:
        """Its length; waits for the GPU until it has ended."""
        assert self._end is not None
        if isinstance(self._start, float):
            assert isinstance(self._end, float)
            return self._end - self._start
        assert not isinstance(self._end, float)
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1000


class StepTimer:
    """Seconds by part of the training step, since the start of the run.

    Attributes:
        part: the part that is running, or in which an error was raised; ``policy`` outside all measured parts.

    Example:
        >>> timer = StepTimer()
        >>> with timer.measure("rollout"):
        ...     timer.part
        'rollout'
        >>> timer.part, [*timer.seconds]
        ('policy', ['rollout'])
        >>> timer.add_tokens(torch.tensor(3))
        >>> timer.tokens
        3
    """

    def __init__(self) -> None:
        self.part = "policy"
        self._tokens: int | Tensor = 0
        self._seconds: dict[str, float] = defaultdict(float)
        self._intervals: deque[tuple[str, Interval]] = deque()

    @contextmanager
    def measure(self, part: str) -> Iterator[Interval]:
        """Add the time of the block to ``part``; a GPU is not waited for.

        Args:
            part: what the block does.

        Yields:
            The time of this block, which has ended when the block has.
        """
        interval, self.part = Interval(), part
        yield interval
        # Not in a finally block: after an error, `part` still names where it was raised.
        interval.stop()
        self.part = "policy"
        self._intervals.append((part, interval))
        # Those that nobody reads are added up here, so that they are never many.
        while self._intervals and self._intervals[0][1].has_ended:
            self._add_first()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each measured part; reading them waits for the GPU."""
        while self._intervals:
            self._add_first()
        return dict(self._seconds)

    def _add_first(self) -> None:
        part, interval = self._intervals.popleft()
        self._seconds[part] += interval.seconds

    def add_tokens(self, count: int | Tensor) -> None:
        """Count tokens that are trained on.

        Args:
            count: their number; as an int64 scalar on a GPU it is not waited for.
        """
        self._tokens = self._tokens + count

    @property
    def tokens(self) -> int:
        """Completion tokens that were trained on; reading their number waits for the GPU."""
        return int(self._tokens)

    @tokens.setter
    def tokens(self, number: int) -> None:
        self._tokens = number
