"""Throughput.

See what a step's time goes into, how many tokens a second come of it, and how much memory it takes.
"""

import resource
import sys
import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from vr1.errors import UserError
from vr1.modules.state import HasTrainingState

_PARTS = ("rollout", "reference")


class Throughput(Callback):
    """Log completion tokens per second, the shares of time of rollout, reference and policy, and the memory peak.

    Logged after every optimizer step: ``perf/step_tokens_per_second`` (of all processes together, over the whole step),
    ``perf/rollout_share``, ``perf/reference_share`` and ``perf/policy_share`` (forward, backward and update; the
    rewards make up the rest), and ``perf/peak_memory_gib``: of the GPU's allocated memory or, without a GPU, of the
    process, since the beginning of the run, on the process that took most.

    Note:
        Time between batches (validation, checkpoints, waiting for data) is not counted. In a step that learns from an
        earlier rollout the rollout's share is 0.

    Raises:
        UserError: the module measures nothing (it is none of vr1).

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import Throughput
        >>> trainer = Trainer(callbacks=[Throughput()], logger=False)

    """

    def __init__(self) -> None:
        self._spent = 0.0
        self._began = 0.0
        self._before: dict[str, float] = {}
        self._step = 0

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        if not isinstance(pl_module, HasTrainingState):
            raise UserError(
                f"Throughput reads `training_state`, which {type(pl_module).__name__} does not have: leave the callback"
                " out"
            )

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._spent, self._before, self._step = 0.0, self._read(pl_module), trainer.global_step

    @override
    def on_train_batch_start(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int
    ) -> None:
        self._began = time.perf_counter()

    @override
    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._spent += time.perf_counter() - self._began
        if trainer.global_step == self._step:
            return
        now, self._step = self._read(pl_module), trainer.global_step
        done = {name: now[name] - self._before[name] for name in now}
        shares = {f"perf/{part}_share": done[part] / self._spent for part in _PARTS}
        shares["perf/policy_share"] = (self._spent - done["rollout"] - done["reference"] - done["reward"]) / self._spent
        several = trainer.world_size > 1
        pl_module.log_dict(shares, sync_dist=several)
        rate, peak = done["tokens"] / self._spent, _peak_memory_gib(pl_module.device)
        pl_module.log("perf/step_tokens_per_second", rate, sync_dist=several, reduce_fx="sum")
        pl_module.log("perf/peak_memory_gib", peak, sync_dist=several, reduce_fx="max")
        self._spent, self._before = 0.0, now

    def _read(self, pl_module: "pl.LightningModule") -> dict[str, float]:
        assert isinstance(pl_module, HasTrainingState)
        timer = pl_module.training_state.timer
        parts = {part: timer.seconds.get(part, 0.0) for part in (*_PARTS, "reward")}
        return {**parts, "tokens": timer.tokens}


def _peak_memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
