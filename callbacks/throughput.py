"""Throughput: tokens per second, the parts of a step's time, and peak memory."""

import resource
import sys
import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from callbacks.outputs import require_module
from vr1.modules.state import HasTrainingState

_PARTS = ("rollout", "reference")


class Throughput(Callback):
    """Log completion tokens per second, the share of each part in a step's time, and peak memory.

    Logged after every optimizer step: ``perf/step_tokens_per_second`` (completion tokens of all processes over the time
    of the step), ``perf/rollout_share``, ``perf/reference_share`` and ``perf/policy_share`` (forward, backward and
    update; the rest is the rewards' share), and ``perf/peak_memory_gib``: the GPU memory allocated at most since the
    start of the run or, without a GPU, the process's memory; of several processes the largest value. With
    ``policy.gradient_checkpointing: auto`` also ``perf/recomputed_layers``, of the step's last batch.

    Note:
        Time between batches (validation, checkpoints, waiting for data) is not counted. In a step that reuses an
        earlier rollout the rollout's share is 0.

    Raises:
        UserError: the module is not one of vr1, so it has no timer.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import Throughput
        >>> trainer = Trainer(callbacks=[Throughput()], logger=False)

    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._batch_start = 0.0
        self._before: dict[str, float] = {}
        self._step = 0

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        require_module(self, pl_module, HasTrainingState)

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._seconds, self._before, self._step = 0.0, self._read(pl_module), trainer.global_step

    @override
    def on_train_batch_start(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int
    ) -> None:
        self._batch_start = time.perf_counter()

    @override
    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._seconds += time.perf_counter() - self._batch_start
        if trainer.global_step == self._step:
            return
        now, self._step = self._read(pl_module), trainer.global_step
        step = {name: now[name] - self._before[name] for name in now}
        shares = {f"perf/{part}_share": step[part] / self._seconds for part in _PARTS}
        policy = self._seconds - step["rollout"] - step["reference"] - step["reward"]
        shares["perf/policy_share"] = policy / self._seconds
        distributed = trainer.world_size > 1
        pl_module.log_dict(shares, sync_dist=distributed)
        rate, peak = step["tokens"] / self._seconds, _peak_memory_gib(pl_module.device)
        pl_module.log("perf/step_tokens_per_second", rate, sync_dist=distributed, reduce_fx="sum")
        pl_module.log("perf/peak_memory_gib", peak, sync_dist=distributed, reduce_fx="max")
        choice = getattr(getattr(pl_module, "policy", None), "recomputation", None)
        if choice is not None:
            pl_module.log("perf/recomputed_layers", float(choice.recomputed), sync_dist=distributed)
        self._seconds, self._before = 0.0, now

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
