"""Non-finite guard.

Keep one bad batch from ruining a model, and a run of them from wasting a GPU.
"""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from callbacks.bad_batch import save_batch
from callbacks.run_outputs import run_folder


class NonFiniteGuard(Callback):
    """Skip the update of a step whose loss or gradient is NaN or infinite; stop the run after several in a row.

    A skipped step leaves weights and optimizer as they were; it counts as a step, and the learning rate goes on. How
    many were skipped so far is logged as ``guard/skipped_steps`` and saved in the checkpoint. The batch that the run
    stopped at is written into the run's folder: ``non_finite/step_N`` (:func:`~callbacks.bad_batch.save_batch`).

    Args:
        max_consecutive: stop when so many steps in a row were skipped.

    Note:
        All processes skip a step together, whichever of them it went wrong on; each writes its own part of the batch.

    Raises:
        ValueError: ``max_consecutive`` is less than 1; and in training, to stop it.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import NonFiniteGuard
        >>> trainer = Trainer(callbacks=[NonFiniteGuard(max_consecutive=3)], logger=False)

    """

    def __init__(self, max_consecutive: int = 5) -> None:
        if max_consecutive < 1:
            raise ValueError(f"NonFiniteGuard: max_consecutive is {max_consecutive}: give at least 1")
        self.max_consecutive = max_consecutive
        self.skipped = 0
        self.consecutive = 0
        self._folder = Path()
        self._finite_loss: Tensor | bool = True
        self._bad: str | None = None
        self._stepped = False

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        self._folder = run_folder(trainer)

    @override
    def on_before_backward(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", loss: Tensor) -> None:
        # Of all batches of an accumulated step; reading the tensor waits for the GPU, so it is read once, below.
        self._finite_loss = loss.detach().isfinite().all() & self._finite_loss

    @override
    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Optimizer
    ) -> None:
        loss_is_finite, self._finite_loss, self._stepped = bool(self._finite_loss), True, True
        fine = loss_is_finite and finite_gradients(optimizer)
        everywhere = trainer.strategy.reduce_boolean_decision(fine, all=True)
        self._bad = None if everywhere else ("gradient" if loss_is_finite else "loss")
        if self._bad:
            # Optimizers leave a parameter without gradient alone, its moments and their count too.
            optimizer.zero_grad(set_to_none=True)

    @override
    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._stepped:
            return
        self._stepped = False
        if self._bad:
            self.skipped, self.consecutive = self.skipped + 1, self.consecutive + 1
            rank_zero_warn(f"step {trainer.global_step} was skipped: its {self._bad} was not finite")
        else:
            self.consecutive = 0
        pl_module.log("guard/skipped_steps", float(self.skipped))
        if self.consecutive >= self.max_consecutive:
            self._stop(trainer, pl_module, batch, batch_idx)

    def _stop(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int) -> None:
        folder = self._folder / "non_finite" / f"step_{trainer.global_step:06d}"
        if trainer.world_size > 1:
            folder = folder / f"rank_{trainer.global_rank}"
        saved = ""
        if hasattr(batch, "records"):
            module: Any = pl_module
            experience = getattr(module, "experience", {}).get(batch_idx % trainer.accumulate_grad_batches)
            save_batch(folder, batch, experience, module.processor.tokenizer, step=trainer.global_step, bad=self._bad)
            saved = f"; the last batch is in {folder}"
        raise ValueError(
            f"the {self._bad} was not finite in {self.consecutive} steps in a row, up to step"
            f" {trainer.global_step}{saved}: lower the learning rate, set trainer.gradient_clip_val, or train in"
            " bfloat16 or float32 rather than float16 (NonFiniteGuard.max_consecutive says how many are borne)"
        )

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "consecutive": self.consecutive}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.consecutive = state_dict["skipped"], state_dict["consecutive"]


def finite_gradients(optimizer: Optimizer) -> bool:
    """Whether every gradient that the optimizer is about to use is finite, this process's shards where it is sharded.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([1.0, float("nan")])
        >>> finite_gradients(torch.optim.SGD([weight], lr=0.1))
        False
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    local: list[Any] = [grad.to_local() if hasattr(grad, "to_local") else grad for grad in gradients]
    return not local or bool(torch.stack([grad.isfinite().all() for grad in local]).all())
