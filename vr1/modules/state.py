"""What a module shows of its run: typed places that callbacks, the command line and benchmarks read."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from vr1.timing import StepTimer
from vr1.types import RolloutBatch, ScoredGroups


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInfo:
    """How a run was started; both are empty for a run that Python started.

    Attributes:
        command: the shell command, quoted, that starts the same run again.
        config: its resolved configuration as YAML.
    """

    command: str = ""
    config: str = ""


@dataclass(kw_only=True, slots=True, eq=False)
class TrainingState:
    """What a module is doing, as callbacks may read it; only the module writes it.

    Attributes:
        run: how the run was started.
        timer: seconds by part of the training step, and completion tokens trained on.
        scored_groups: the newest completions with their rewards; None before the first rollout and without rollouts.
        warm_start: the present step is supervised, before the first rollout.
        classes: figures of the newest validation of a training by class, on rank zero; see `CocoMetrics.per_class`.
        rollout_batches: what the next updates are made from, by the batch's position in the optimizer step.
    """

    run: RunInfo = field(default_factory=RunInfo)
    timer: StepTimer = field(default_factory=StepTimer)
    scored_groups: ScoredGroups | None = None
    warm_start: bool = False
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    rollout_batches: dict[int, RolloutBatch] = field(default_factory=dict)


@runtime_checkable
class HasTrainingState(Protocol):
    """A LightningModule whose training callbacks can follow: every module of vr1.

    Example:
        >>> class Mine:
        ...     def __init__(self) -> None:
        ...         self.training_state = TrainingState()
        >>> isinstance(Mine(), HasTrainingState), isinstance(object(), HasTrainingState)
        (True, False)
    """

    training_state: TrainingState
