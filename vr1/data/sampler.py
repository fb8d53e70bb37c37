"""The order of training: batches of indices as a function of seed, epoch and position, and a loader that resumes.

An optimizer step sees one *window*: ``window`` batches on each of ``world`` processes. Which records are in it depends
only on their total number, not on ``window`` or ``world``; so a run resumes in the middle of an epoch, also on another
number of processes, with the records that it would have seen. Each window is repeated for several updates.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from vr1.errors import UserError


class RepeatedBatches(Sampler[list[int]]):
    """Full batches of the records, in windows, every window repeated.

    With gradient accumulation over ``window`` batches and ``repeats`` updates per rollout, the optimizer has to see the
    complete window before any of it is repeated: a b | a b | c d | c d for a window of two and two repeats.

    Args:
        length: number of records.
        batch_size: records per batch and process.
        repeats: how often each window is repeated.
        window: batches per optimizer step and process.
        seed: seed of the order, which differs in every epoch; None keeps the records' own order.
        rank: index of this process.
        world: number of processes that share the records.
        multiple: the batches of an epoch, on each process, are a multiple of this, as ``window`` is in every epoch;
            None takes ``window``.

    Note:
        Records that do not fill a window are left out of the epoch, so that every step has the same size.

    Raises:
        UserError: there are fewer records than one optimizer step takes.

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
        multiple: int | None = None,
    ) -> None:
        self.length, self.batch_size, self.repeats, self.window = length, batch_size, repeats, window
        self.seed, self.rank, self.world, self.multiple = seed, rank, world, multiple or window
        self.epoch, self.start = 0, 0
        if not len(self):
            parts = f"batch_size={batch_size}"
            parts += f" x accumulate_grad_batches={self.multiple}" if self.multiple > 1 else ""
            parts += f" x {world} processes" if world > 1 else ""
            what = "batch" if self.multiple * world == 1 else "optimizer step"
            raise UserError(f"data: {length} training records do not fill one {what} of {parts}; lower batch_size")

    @property
    def records_per_step(self) -> int:
        """Records that one optimizer step sees on all processes together."""
        return self.batch_size * self.window * self.world

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch."""
        self.epoch, self.start = epoch, 0

    def order(self) -> list[int]:
        """All records in the order of this epoch."""
        if self.seed is None:
            return list(range(self.length))
        order: list[int] = np.random.default_rng([self.seed, self.epoch]).permutation(self.length).tolist()
        return order

    def __len__(self) -> int:
        """Batches of a full epoch for this process."""
        return self.length // (self.batch_size * self.multiple * self.world) * self.multiple * self.repeats

    def __iter__(self) -> Iterator[list[int]]:
        """The batches from position ``start`` to the end of the epoch."""
        order = self.order()
        for position in range(self.start, len(self)):
            step, slot = position // self.window // self.repeats, position % self.window
            first = (step * self.window + slot) * self.world + self.rank
            yield order[first * self.batch_size : (first + 1) * self.batch_size]


class TrainingLoader:
    """Batches for training, with a position that is saved and restored.

    The position counts the batches that training has received, not those that worker processes have prepared ahead.
    This is no ``DataLoader``, since Lightning would replace its sampler: the batches already know their process.

    Args:
        source: records by index.
        batches: which records, in which order.
        first_of_step: makes of all batches of an optimizer step the one that is given first; None gives each as it is.
        window_of: batches of an optimizer step in an epoch of Lightning's number; None keeps that of ``batches``.
        loading: other arguments of ``DataLoader`` (``collate_fn``, ``num_workers``, ``generator``, ...).

    Example:
        >>> loader = TrainingLoader(range(6), RepeatedBatches(6, batch_size=2), collate_fn=list)
        >>> batches = iter(loader)
        >>> next(batches)
        [0, 1]
        >>> resumed = TrainingLoader(range(6), RepeatedBatches(6, batch_size=2), collate_fn=list)
        >>> resumed.load_state_dict(loader.state_dict())
        >>> list(resumed)
        [[2, 3], [4, 5]]
    """

    def __init__(
        self,
        source: Dataset[Any],
        batches: RepeatedBatches,
        first_of_step: Callable[[Sequence[Any]], Any] | None = None,
        window_of: Callable[[int], int] | None = None,
        **loading: Any,
    ) -> None:
        self.batches, self._first_of_step, self._window_of = batches, first_of_step, window_of
        self._loader = DataLoader(source, batch_sampler=batches, **loading)
        self._received = 0
        self._lightning_epoch, self._ended = 0, False

    @property
    def _iterator(self) -> Any:
        """The iterator of worker processes, which Lightning ends after a training, and drops; it asks for this name."""
        return self._loader._iterator

    @_iterator.setter
    def _iterator(self, value: None) -> None:
        self._loader._iterator = value

    @property
    def sampler(self) -> "TrainingLoader":
        """Itself: Lightning calls ``set_epoch`` of a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Lightning's hook before every epoch.

        Only a change of the number matters: after a checkpoint at the end of an epoch, Lightning skips a number.
        """
        self._ended = self._ended or epoch != self._lightning_epoch
        self._lightning_epoch = epoch
        self._set_window()

    def _set_window(self) -> None:
        if self._window_of is not None:
            self.batches.window = self._window_of(self._lightning_epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        # A generator, since Lightning calls iter() before set_epoch().
        if self._ended:
            self.batches.set_epoch(self.batches.epoch + 1)
            self._ended = False
        self._received = self.batches.start
        batches, window = iter(self._loader), self.batches.window
        while ahead := deque(islice(batches, self._ahead(self._received % window))):
            if len(ahead) > 1:
                assert self._first_of_step is not None
                ahead[0] = self._first_of_step(list(ahead))
            while ahead:
                self._received += 1
                yield ahead.popleft()

    def _ahead(self, position: int) -> int:
        """Batches to read at once, from a position in the window: the rest of it, where its first carries the others.

        Repetitions of a window are read one by one: their completions are those of its first time.
        """
        repeated = self._received // self.batches.window % self.batches.repeats > 0
        return 1 if self._first_of_step is None or repeated else self.batches.window - position

    def state_dict(self) -> dict[str, Any]:
        """The position, and everything that determines which records come next."""
        batches = self.batches
        return {
            "epoch": batches.epoch,
            "lightning_epoch": self._lightning_epoch,
            "batches": self._received,
            "batches_of_epoch": len(batches),
            "window": batches.window,
            "order": {name: getattr(batches, name) for name in _ORDER},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume at a position.

        Raises:
            UserError: the position is in the middle of an epoch, which would continue with other records; or within an
                optimizer step, which now has another number of batches.
        """
        # Version 0.1.0 called it told_epoch.
        self._lightning_epoch = state["lightning_epoch"] if "lightning_epoch" in state else state["told_epoch"]
        self._set_window()
        received, window = state["batches"], self.batches.window
        for name, meaning in _ORDER.items():
            if received and (now := getattr(self.batches, name)) != (then := state["order"][name]):
                raise UserError(
                    f"the checkpoint is in the middle of an epoch with {then} as {meaning}, and now it is {now}:"
                    f" set it to {then} again to resume with the records that come next"
                )
        if window != state["window"] and received % state["window"]:
            raise UserError(
                f"the checkpoint is in the middle of an optimizer step of {state['window']} batches, and now a step has"
                f" {window}: set trainer.accumulate_grad_batches to {state['window']} again, or resume from an earlier"
                " checkpoint"
            )
        self.batches.set_epoch(state["epoch"])
        if window != state["window"]:
            received = received // state["window"] * window
        self.batches.start = self._received = received
        self._ended = False


# What must not change within an epoch, and its name in an error.
_ORDER = {
    "length": "the number of training records",
    "seed": "the seed of their order (data.seed, seed_everything; None where data.shuffle is false)",
    "repeats": "model.updates_per_rollout",
    "records_per_step": "the records of one optimizer step (data.batch_size x accumulate_grad_batches x processes)",
}
