"""WeightAverage.

Evaluate and save the moving average of the weights instead of those of the latest step.
"""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from vr1.errors import UserError

# Name of the tensor in the optimizer's state of each parameter.
_KEY = "weight_average"


class WeightAverage(Callback):
    """Keep an exponential moving average of the trained weights, and use it for validation, checkpoints and export.

    ``average = decay * average + (1 - decay) * weights`` after every optimizer step, from the weights after the first.
    Training itself goes on with the weights as they are. Rewards are noisy, and so is the last of many small steps:
    the average over the last ``1 / (1 - decay)`` of them usually finds more.

    A checkpoint has the average as its weights, so ``export``, ``validate`` and ``show`` use it without this callback;
    the weights of the latest step are with the optimizer's state, and a training resumes from them, exactly. When
    training ends, the model has the average.

    Lightning's own ``WeightAveraging`` copies the whole module, a frozen base or reference with it, and cannot shard
    the copy. Here only trained weights have an average, in the optimizer's state: 4 bytes a trained weight, sharded and
    saved as the rest of that state.

    Args:
        decay: share of the average that a step keeps, from 0 to below 1.

    Raises:
        UserError: ``decay`` is out of range; in training, a second callback of this kind, or trained weights that are
            not float32, which are too coarse to be averaged.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import WeightAverage
        >>> trainer = Trainer(callbacks=[WeightAverage(decay=0.95)], logger=False)

    Source: Polyak and Juditsky, Acceleration of stochastic approximation by averaging, 1992.

    """

    def __init__(self, decay: float = 0.95) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"WeightAverage: decay={decay} must be at least 0 and below 1")
        self.decay = decay
        self._exchanged = False

    @override
    def on_fit_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        # Each of two would undo what the other exchanges.
        if sum(isinstance(callback, WeightAverage) for callback in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise UserError("WeightAverage is there twice, as where a configuration has one already; leave one out")
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad and parameter.dtype != torch.float32:
                raise UserError(
                    f"WeightAverage: {name} is trained in {parameter.dtype}, which is too coarse to be averaged; set"
                    " policy.dtype float32 with trainer.precision bf16-mixed, or train adapters"
                )

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        # A checkpoint that this callback was part of has put the average into the module.
        self._exchanged = any(True for _ in _averaged(trainer))
        self._exchange(trainer, average=False)
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(self._update)

    @override
    def on_validation_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._exchange(trainer, average=True)

    @override
    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._exchange(trainer, average=False)

    @override
    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._exchange(trainer, average=True)

    @override
    def on_save_checkpoint(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", checkpoint: dict[str, Any]
    ) -> None:
        weights, states = checkpoint["state_dict"], checkpoint.get("optimizer_states")
        if self._exchanged or not states:
            return
        # Tied weights are in a checkpoint under each of their names.
        names: dict[Tensor, list[str]] = {}
        for name, parameter in pl_module.named_parameters(remove_duplicate=False):
            names.setdefault(parameter, []).append(name)
        for index, optimizer in enumerate(trainer.optimizers):
            # Of sharded weights that are gathered, only the first process has any.
            by_number = dict(states[index].get("state", {}))
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for number, parameter in enumerate(parameters):
                if _KEY not in by_number.get(number, {}):
                    continue
                own = names[parameter]
                latest, average = weights[own[0]], by_number[number][_KEY]
                weights.update(dict.fromkeys(own, average))
                by_number[number] = {**by_number[number], _KEY: latest}
            if by_number:
                states[index] = {**states[index], "state": by_number}

    @torch.no_grad()
    def _update(self, optimizer: Optimizer, *_: Any) -> None:
        """Add the weights after a step to the average."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                state = optimizer.state.get(parameter)
                # Optimizers set up the state of a parameter at its first step, if it is empty.
                if not state:
                    continue
                if _KEY in state:
                    state[_KEY].lerp_(parameter, 1 - self.decay)
                else:
                    state[_KEY] = parameter.detach().clone()

    @torch.no_grad()
    def _exchange(self, trainer: "pl.Trainer", average: bool) -> None:
        """Put the average into the module and the latest weights into the state, or the reverse."""
        if self._exchanged == average:
            return
        for parameter, state in _averaged(trainer):
            other = state[_KEY].clone()
            state[_KEY].copy_(parameter)
            parameter.copy_(other)
        self._exchanged = average


def _averaged(trainer: "pl.Trainer") -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """The parameters that have an average, with the optimizer's state of each."""
    for optimizer in trainer.optimizers:
        for parameter, state in optimizer.state.items():
            if isinstance(parameter, Tensor) and _KEY in state:
                yield parameter, state
