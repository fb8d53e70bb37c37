"""Batches of indices as a function of seed, epoch and position, each window repeated for several updates.

A step of the optimizer sees one *window*: ``window`` batches on each of ``world`` processes. Which records are in it
depends on neither of the two, only on how many there are in all; so a training goes on in the middle of an epoch, and
on another number of processes, with the records that it would have seen next.
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class RepeatedBatches(Sampler[list[int]]):
    """Full batches of the records, in windows, every window repeated.

    With gradient accumulation over ``window`` batches and ``repeats`` updates per rollout, the optimizer has to see the
    whole window before any of it comes again: a b | a b | c d | c d for a window of two and two repeats.

    Args:
        length: records there are.
        batch_size: records per batch and process.
        repeats: how often each window comes.
        window: batches per optimizer step and process.
        seed: seed of the order, which is another one in every epoch; None keeps the records' own order.
        rank: which of the processes this is.
        world: processes that share the records.

    Note:
        Records that do not fill a window are left out of the epoch, so that every step has the same size.

    Raises:
        ValueError: there are fewer records than one optimizer step takes.

    Example:
        >>> list(RepeatedBatches(5, batch_size=2, repeats=2))
        [[0, 1], [0, 1], [2, 3], [2, 3]]
        >>> list(RepeatedBatches(4, batch_size=1, repeats=2, window=2))
        [[0], [1], [0], [1], [2], [3], [2], [3]]
        >>> [list(RepeatedBatches(4, batch_size=1, rank=rank, world=2)) for rank in (0, 1)]
        [[[0], [2]], [[1], [3]]]
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        repeats: int = 1,
        window: int = 1,
        seed: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.length, self.batch_size, self.repeats, self.window = length, batch_size, repeats, window
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch, self.start = 0, 0
        if length < self.records_per_step:
            parts = f"batch_size={batch_size}"
            parts += f" x accumulate_grad_batches={window}" if window > 1 else ""
            parts += f" x {world} processes" if world > 1 else ""
            what = "batch" if self.records_per_step == batch_size else "optimizer step"
            raise ValueError(f"data: {length} training records do not fill one {what} of {parts}; lower batch_size")

    @property
    def records_per_step(self) -> int:
        """Records that one optimizer step sees on all processes together."""
        return self.batch_size * self.window * self.world

    def set_epoch(self, epoch: int) -> None:
        """Take the order of an epoch, from its beginning."""
        self.epoch, self.start = epoch, 0

    def order(self) -> list[int]:
        """All records in the order of this epoch."""
        if self.seed is None:
            return list(range(self.length))
        order: list[int] = np.random.default_rng([self.seed, self.epoch]).permutation(self.length).tolist()
        return order

    def __len__(self) -> int:
        """Batches of a whole epoch for this process."""
        return self.length // self.records_per_step * self.window * self.repeats

    def __iter__(self) -> Iterator[list[int]]:
        """The batches from position ``start`` to the end of the epoch."""
        order = self.order()
        for position in range(self.start, len(self)):
            step, slot = position // self.window // self.repeats, position % self.window
            first = (step * self.window + slot) * self.world + self.rank
            yield order[first * self.batch_size : (first + 1) * self.batch_size]
