"""Which metrics the report draws together."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    """One subject and its metrics; a name ending in ``/`` takes all below it."""

    title: str
    metrics: tuple[str, ...]


PANELS = (
    Panel("Reward (training)", ("reward/total", "reward/")),
    Panel("Detection (validation)", ("val/map", "val/map_50", "val/map_75", "val/ar_100")),
    Panel("Reward (validation)", ("val/reward", "val/reward_")),
    Panel("Valid answers (validation)", ("val/valid_rate", "val/well_formed_rate")),
    Panel("KL to the reference", ("grpo/kl",)),
    Panel("Loss", ("grpo/loss", "sft/loss")),
    Panel("Thresholds", ("rule/xi0", "rule/xi1", "rule/xi2")),
    Panel("Completion length in tokens", ("grpo/completion_tokens",)),
    Panel("Groups without a signal", ("grpo/equal_groups",)),
    Panel("Tokens per second", ("perf/tokens_per_second",)),
)


def panels_of(names: Iterable[str]) -> list[Panel]:
    """The panels that have something to show, their metrics written out; what no panel takes comes last, one by one.

    Example:
        >>> [panel.title for panel in panels_of(["reward/recall", "val/map", "my/own"])]
        ['Reward (training)', 'Detection (validation)', 'my/own']
    """
    known = list(dict.fromkeys(names))
    shown, taken = [], {"epoch", "step", "rule/stage"}
    for panel in PANELS:
        found = [name for metric in panel.metrics for name in _takes(metric, known)]
        if found := [name for name in dict.fromkeys(found) if name not in taken]:
            taken.update(found)
            shown.append(Panel(panel.title, tuple(found)))
    return shown + [Panel(name, (name,)) for name in sorted(known) if name not in taken]


def _takes(metric: str, names: list[str]) -> list[str]:
    if metric.endswith(("/", "_")):
        return sorted(name for name in names if name.startswith(metric))
    return [metric] if metric in names else []
