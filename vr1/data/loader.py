"""A loader of training batches that goes on where a checkpoint left it."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from vr1.data.repeat import RepeatedBatches


class TrainingLoader:
    """Batches for training, with a position that is saved and restored.

    What counts is the batches that were handed out, not those that worker processes have prepared ahead. It is no
    ``DataLoader``, in which Lightning would put a sampler of its own: the batches already know their process.

    Args:
        source: records by index.
        batches: which records, in which order.
        loading: what ``DataLoader`` takes beside these (``collate_fn``, ``num_workers``, ``generator``, ...).

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

    def __init__(self, source: Dataset[Any], batches: RepeatedBatches, **loading: Any) -> None:
        self.batches = batches
        self._loader = DataLoader(source, batch_sampler=batches, **loading)
        self._handed_out = 0
        self._told_epoch, self._ended = 0, False

    @property
    def sampler(self) -> "TrainingLoader":
        """Itself: this is where Lightning looks for something with ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Hear from Lightning, before every epoch, which one it is.

        Only that it is another one counts: after a checkpoint of an epoch's end, Lightning leaves a number out.
        """
        self._ended = self._ended or epoch != self._told_epoch
        self._told_epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        # A generator: Lightning asks for the iterator before it says whether another epoch begins.
        if self._ended:
            self.batches.set_epoch(self.batches.epoch + 1)
            self._ended = False
        self._handed_out = self.batches.start
        for batch in self._loader:
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position, and all that decides which records come next."""
        batches = self.batches
        return {
            "epoch": batches.epoch,
            "told_epoch": self._told_epoch,
            "batches": self._handed_out,
            "window": batches.window,
            "order": {name: getattr(batches, name) for name in _ORDER},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a position.

        Raises:
            ValueError: the position lies within an epoch that would go on with other records.
        """
        handed_out, window = state["batches"], self.batches.window
        for name, meaning in _ORDER.items():
            if handed_out and (now := getattr(self.batches, name)) != (then := state["order"][name]):
                raise ValueError(
                    f"the checkpoint lies in the middle of an epoch with {then} as {meaning}, and now it is {now}:"
                    f" set it to {then} again to go on with the records that come next"
                )
        if handed_out % state["window"]:
            raise ValueError("the checkpoint lies in the middle of an optimizer step; resume from an earlier one")
        self.batches.set_epoch(state["epoch"])
        self.batches.start = self._handed_out = handed_out // state["window"] * window
        self._told_epoch, self._ended = state["told_epoch"], False


# What must not change within an epoch, and how an error calls it.
_ORDER = {
    "length": "the number of training records",
    "seed": "the seed of their order (data.seed, seed_everything; None where data.shuffle is false)",
    "repeats": "model.updates_per_rollout",
    "records_per_step": "the records of one optimizer step (data.batch_size x accumulate_grad_batches x processes)",
}
