"""What a training step logs: figures of its completions, the times of its parts, all as scalars on the device.

Nothing here waits for a GPU, except reading the times.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vr1.advantage import Advantages, RewardedGroups, zero_variance_groups
from vr1.data.accumulation import batches_left
from vr1.timing import Interval
from vr1.types import Rollout


def on_device(values: Mapping[str, float | Tensor], device: torch.device) -> dict[str, Tensor]:
    """Figures as float32 scalars on a device.

    All that are on the host are copied together, and without waiting for a GPU, as Lightning would for each of them.

    Args:
        values: by name a number, or a scalar on the host or on the device.
        device: of the module.

    Example:
        >>> on_device({"loss": torch.tensor(0.5), "share": 1}, torch.device("cpu"))
        {'loss': tensor(0.5000), 'share': tensor(1.)}
    """
    there = {
        name: value.float() for name, value in values.items() if isinstance(value, Tensor) and value.device == device
    }
    host = [name for name in values if name not in there]
    copied = torch.tensor([float(values[name]) for name in host]).to(device, non_blocking=True)
    moved = there | dict(zip(host, copied.unbind(), strict=True))
    return {name: moved[name] for name in values}


def rollout_figures(rollout: Rollout, rewards: RewardedGroups, advantages: Advantages) -> dict[str, float | Tensor]:
    """Figures of completions that are trained on, beside the means of their rewards.

    Args:
        rollout: G completions of each of B prompts.
        rewards: their rewards.
        advantages: their advantages.
    """
    count = rollout.finished.numel()
    return {
        "zero_variance_groups": zero_variance_groups(rewards.total).float().mean(),
        "reward_std": rewards.total.std(dim=1).mean(),
        "completion_tokens": rollout.mask.sum() / count,
        "truncated": (~rollout.finished).float().mean(),
        "problems": sum(len(match.detections.problems) for match in rewards.matches) / count,
        **advantages.metrics(),
    }


class StepTimes:
    """Seconds of the parts of an optimizer step, of all its batches so far.

    Example:
        >>> times = StepTimes()
        >>> with times.measure("sampling"):
        ...     times.add("reference", 0.5)
        >>> sorted(times.figures())
        ['reference_seconds', 'sampling_seconds']
    """

    def __init__(self) -> None:
        self._parts: dict[str, list[Interval | float]] = defaultdict(list)
        self._tokens, self._decoding = 0.0, 0.0

    def clear(self) -> None:
        """Begin another step."""
        self._parts.clear()
        self._tokens, self._decoding = 0.0, 0.0

    def add(self, part: str, time: Interval | float) -> None:
        """Add a time, in seconds, to a part."""
        self._parts[part].append(time)

    def add_rollout(self, rollout: Rollout) -> None:
        """Add the times and the tokens of a rollout."""
        for part, seconds in rollout.seconds.items():
            self.add(part, seconds)
        self._tokens += float(rollout.mask.sum())
        self._decoding += sum(rollout.seconds.values())

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the time of the block to ``part``."""
        interval = Interval()
        yield
        interval.stop()
        self.add(part, interval)

    def figures(self) -> dict[str, float]:
        """Seconds by part, and tokens sampled a second; waits for a GPU."""
        seconds = {
            part: sum(time.seconds if isinstance(time, Interval) else time for time in times)
            for part, times in self._parts.items()
        }
        rate = {"tokens_per_second": self._tokens / self._decoding} if self._decoding else {}
        return {f"{part}_seconds": value for part, value in seconds.items()} | rate


def times_are_read(trainer: Any, batch_idx: int, device: torch.device) -> bool:
    """Whether to read the times after a batch: on a GPU, which this waits for, only those that are written to a log.

    Args:
        trainer: a Lightning trainer.
        batch_idx: number of the batch in the epoch.
        device: of the module.
    """
    if device.type != "cuda":
        return True
    every = trainer.log_every_n_steps
    return bool(every) and batches_left(trainer, batch_idx) == 1 and (trainer.global_step + 1) % every == 0
