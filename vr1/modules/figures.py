"""What an optimizer step logs: figures of all its batches, and the times of its parts.

Nothing here waits for a GPU, except reading the times.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vr1.advantage import Advantages, RewardedGroups, zero_variance_groups
from vr1.data.accumulation import batches_left
from vr1.timing import Interval
from vr1.types import Rollout

Reduce = Callable[..., Tensor]


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


def rollout_figures(rollout: Rollout, rewards: RewardedGroups) -> dict[str, float | Tensor]:
    """Figures of completions that are trained on, beside the means of their rewards.

    Args:
        rollout: G completions of each of B prompts.
        rewards: their rewards.
    """
    count = rollout.finished.numel()
    return {
        "zero_variance_groups": zero_variance_groups(rewards.total).float().mean(),
        "reward_std": rewards.total.std(dim=1).mean(),
        "completion_tokens": rollout.mask.sum() / count,
        "truncated": (~rollout.finished).float().mean(),
        "problems": sum(len(match.detections.problems) for match in rewards.matches) / count,
    }


class StepFigures:
    """Figures of an optimizer step: weighted means and maxima, of all its batches on all processes.

    A batch adds its own, without any communication; `take` is called once a step.

    Example:
        >>> figures = StepFigures()
        >>> figures.add("grpo", {"kl": 0.5}, weight=30)
        >>> figures.add("grpo", {"kl": 0.1}, weight=10)
        >>> figures.take(torch.device("cpu"), lambda tensor, reduce_op: tensor)
        {'grpo/kl': tensor(0.4000)}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._maxima: dict[str, Tensor] = {}

    def add(self, group: str, values: Mapping[str, float | Tensor], weight: float | Tensor = 1.0) -> None:
        """Add figures of a batch whose means are logged.

        Args:
            group: the beginning of their names, without the slash.
            values: by name a number, or a scalar on the host or on the device, each a mean over this process's batch.
            weight: the number of what they are means over, such as tokens.
        """
        for name, value in _scalars(group, values):
            weighted, count = value * weight, torch.as_tensor(weight, dtype=torch.float32)
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
            self._weights[name] = self._weights[name] + count if name in self._weights else count

    def add_maxima(self, group: str, values: Mapping[str, float | Tensor]) -> None:
        """Add figures of a batch whose maxima are logged; as in `add`."""
        for name, value in _scalars(group, values):
            self._maxima[name] = torch.maximum(self._maxima[name], value) if name in self._maxima else value

    def add_rollout(self, rollout: Rollout, rewards: RewardedGroups, advantages: Advantages) -> None:
        """Add the rewards and the other figures of completions that are trained on.

        Args:
            rollout: G completions of each of B prompts.
            rewards: their rewards.
            advantages: their advantages.
        """
        scores = {"total": rewards.total, **rewards.terms}
        self.add("reward", {name: values.mean() for name, values in scores.items()}, len(rewards.total))
        self.add("grpo", rollout_figures(rollout, rewards), len(rewards.total))
        self.add("grpo", advantages.metrics(), sum(map(len, advantages.boxes or ())))

    def take(self, device: torch.device, reduce: Reduce) -> dict[str, Tensor]:
        """The figures of the step by full name, as scalars on the device, and begin another one.

        Args:
            device: of the module.
            reduce: that of Lightning's strategy; to be called by all processes.
        """
        state = self.state_dict(device, reduce)
        self.load_state_dict({})
        least = torch.finfo(torch.float32).tiny
        means = {name: total / state["weights"][name].clamp(min=least) for name, total in state["sums"].items()}
        return {**means, **state["maxima"]}

    def state_dict(self, device: torch.device, reduce: Reduce) -> dict[str, dict[str, Tensor]]:
        """What the batches so far have added, on average over the processes; as in `take`."""
        return {
            "sums": _reduced(self._sums, device, reduce, "mean"),
            "weights": _reduced(self._weights, device, reduce, "mean"),
            "maxima": _reduced(self._maxima, device, reduce, "max"),
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Continue a step with what `state_dict` returned, or begin one with an empty mapping."""
        self._sums, self._weights = dict(state.get("sums", {})), dict(state.get("weights", {}))
        self._maxima = dict(state.get("maxima", {}))


def _scalars(group: str, values: Mapping[str, float | Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, value in values.items():
        yield f"{group}/{name}", torch.as_tensor(value, dtype=torch.float32).detach()


def _reduced(values: Mapping[str, Tensor], device: torch.device, reduce: Reduce, by: str) -> dict[str, Tensor]:
    if not values:
        return {}
    stacked = torch.stack([*on_device(values, device).values()])
    return dict(zip(values, reduce(stacked, reduce_op=by).unbind(), strict=True))


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
