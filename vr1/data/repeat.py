"""Batches of indices, each window of them repeated for several updates from one rollout."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from torch.utils.data import BatchSampler


class RepeatedBatches(BatchSampler):
    """Full batches of a sampler, in windows, every window repeated.

    With gradient accumulation over ``window`` batches and ``repeats`` updates per rollout, the optimizer has to see the
    whole window before any of it comes again: a b | a b | c d | c d for a window of two and two repeats.

    With several processes Lightning puts a distributed sampler in the place of ``sampler``, as in any ``BatchSampler``.

    Args:
        sampler: yields indices.
        batch_size: indices per batch; an incomplete last batch is left out, so that every step has the same size.
        repeats: how often each window comes.
        window: batches per optimizer step.

    Raises:
        ValueError: there are fewer records than one batch holds.

    Example:
        >>> list(RepeatedBatches(range(5), batch_size=2, repeats=2))
        [[0, 1], [0, 1], [2, 3], [2, 3]]
        >>> list(RepeatedBatches(range(4), batch_size=1, repeats=2, window=2))
        [[0], [1], [0], [1], [2], [3], [2], [3]]
    """

    def __init__(self, sampler: Any, batch_size: int, repeats: int = 1, window: int = 1) -> None:
        super().__init__(sampler, batch_size, drop_last=True)
        self.repeats, self.window = repeats, window
        self.batches = len(sampler) // batch_size
        if not self.batches:
            raise ValueError(
                f"data: {len(sampler)} training records do not fill one batch of batch_size={batch_size}; lower it"
            )

    def __len__(self) -> int:
        return self.batches * self.repeats

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.sampler)
        full = (list(islice(indices, self.batch_size)) for _ in range(self.batches))
        while window := list(islice(full, self.window)):
            yield from chain.from_iterable([window] * self.repeats)
