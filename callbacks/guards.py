"""Guards of long runs against what ruins them: non-finite gradients, a policy that drifts away, too little memory."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from typing_extensions import override

from callbacks.outputs import run_folder
from vr1.errors import UserError, is_out_of_memory, memory_advice
from vr1.modules.base import DetectionModule
from vr1.modules.state import HasTrainingState
from vr1.prompts import PromptBatch
from vr1.types import RolloutBatch


class NonFiniteGuard(Callback):
    """Skip the update of a step whose loss or gradient is NaN or infinite; stop the run after several in a row.

    A skipped step leaves the weights and the optimizer's state unchanged; it counts as a step, and the learning-rate
    schedule advances. The number of skipped steps is logged as ``guard/skipped_steps`` and saved in the checkpoint. The
    batch at which the run stops is written to ``non_finite/step_N`` in the run's folder (:func:`save_batch`).

    Args:
        max_consecutive: stop after this many skipped steps in a row.

    Note:
        All processes skip a step together if it is not finite on one of them; each writes its own part of the batch.

    Raises:
        UserError: ``max_consecutive`` is less than 1; in training, to stop the run.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import NonFiniteGuard
        >>> trainer = Trainer(callbacks=[NonFiniteGuard(max_consecutive=3)], logger=False)

    """

    def __init__(self, max_consecutive: int = 5) -> None:
        if max_consecutive < 1:
            raise UserError(f"NonFiniteGuard: max_consecutive is {max_consecutive}: give at least 1")
        self.max_consecutive = max_consecutive
        self.skipped = 0
        self.consecutive = 0
        self._folder = Path()
        self._finite_loss: Tensor | bool = True
        self._non_finite: str | None = None
        self._stepped = False

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        self._folder = run_folder(trainer)

    @override
    def on_before_backward(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", loss: Tensor) -> None:
        # Collected over all batches of an accumulated step. Reading the tensor waits for the GPU, so that is done once
        # per step, below.
        self._finite_loss = loss.detach().isfinite().all() & self._finite_loss

    @override
    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Optimizer
    ) -> None:
        loss_is_finite, self._finite_loss, self._stepped = bool(self._finite_loss), True, True
        finite = loss_is_finite and finite_gradients(optimizer)
        finite_everywhere = trainer.strategy.reduce_boolean_decision(finite, all=True)
        self._non_finite = None if finite_everywhere else ("gradient" if loss_is_finite else "loss")
        if self._non_finite:
            # Optimizers skip parameters without a gradient; their moments and step counts do not change either.
            optimizer.zero_grad(set_to_none=True)

    @override
    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._stepped:
            return
        self._stepped = False
        if self._non_finite:
            self.skipped, self.consecutive = self.skipped + 1, self.consecutive + 1
            rank_zero_warn(f"step {trainer.global_step} was skipped: its {self._non_finite} was not finite")
        else:
            self.consecutive = 0
        pl_module.log("guard/skipped_steps", float(self.skipped))
        if self.consecutive >= self.max_consecutive:
            self._stop(trainer, pl_module, batch, batch_idx)

    def _stop(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int) -> None:
        assert self._non_finite is not None
        saved = ""
        if isinstance(batch, PromptBatch) and isinstance(pl_module, DetectionModule):
            folder = self._folder / "non_finite" / f"step_{trainer.global_step:06d}"
            if trainer.world_size > 1:
                folder = folder / f"rank_{trainer.global_rank}"
            position = batch_idx % trainer.accumulate_grad_batches
            rollout_batch = pl_module.training_state.rollout_batches.get(position)
            facts = {"step": trainer.global_step, "not_finite": self._non_finite}
            save_batch(folder, batch, rollout_batch, pl_module.processor.tokenizer, facts)
            saved = f"; the last batch is in {folder}"
        raise UserError(
            f"the {self._non_finite} was not finite in {self.consecutive} steps in a row, up to step"
            f" {trainer.global_step}{saved}: lower the learning rate, set trainer.gradient_clip_val, or train in"
            " bfloat16 or float32 rather than float16 (NonFiniteGuard.max_consecutive sets how many are allowed)"
        )

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "consecutive": self.consecutive}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.consecutive = state_dict["skipped"], state_dict["consecutive"]


def finite_gradients(optimizer: Optimizer) -> bool:
    """Whether every gradient that the optimizer is about to use is finite; of sharded ones, this process's part.

    Args:
        optimizer: after the backward pass.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([1.0, float("nan")])
        >>> finite_gradients(torch.optim.SGD([weight], lr=0.1))
        False
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    return not local or bool(torch.stack([gradient.isfinite().all() for gradient in local]).all())


def save_batch(
    folder: Path, batch: PromptBatch, rollout_batch: RolloutBatch | None, tokenizer: Any, facts: dict[str, Any]
) -> Path:
    """Write a training batch to disk for inspection.

    Args:
        folder: created if missing.
        batch: B prompts.
        rollout_batch: their completions and advantages; None if there are none.
        tokenizer: decodes the completions.
        facts: plain values, added to the JSON file.

    Returns:
        The folder: ``batch.json`` (questions, true boxes, completions, advantages: one for each completion, or a list
        of those of its tokens), a picture per prompt, and
        ``tensors.pt`` (loads with ``weights_only=True``).
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (record, instruction) in enumerate(zip(batch.records, batch.instructions, strict=True)):
        record.image.save(folder / f"{number}.png")
        row = {"picture": f"{number}.png", "origin": record.origin, "image_id": record.image_id}
        row |= {"instruction": instruction, "labels": list(record.labels), "boxes_xyxy": record.boxes_xyxy.tolist()}
        if rollout_batch is not None:
            completions = zip(rollout_batch.tokens[number], rollout_batch.mask[number], strict=True)
            row["completions"] = tokenizer.batch_decode([tokens[mask].tolist() for tokens, mask in completions])
            row["advantages"] = [
                advantage[mask].tolist() if advantage.dim() else float(advantage)
                for advantage, mask in zip(rollout_batch.advantages[number], rollout_batch.mask[number], strict=True)
            ]
        rows.append(row)
    text = json.dumps({**facts, "records": rows}, indent=2, ensure_ascii=False)
    (folder / "batch.json").write_text(text + "\n", encoding="utf-8")
    prompts = {"tokens": batch.tokens.cpu(), "mask": batch.mask.cpu()}
    prompts |= {name: value.cpu() for name, value in batch.vision.items()}
    rollouts = None if rollout_batch is None else rollout_batch.state_dict()
    torch.save({"prompts": prompts, "rollout_batch": rollouts}, folder / "tensors.pt")
    return folder


class KLCeiling(Callback):
    """Warn when the KL to the reference exceeds a ceiling, and end training when it stays there.

    The run then ends like one that has reached its last step: with its last checkpoint, export and tables.

    Args:
        ceiling: mean KL per token, in nats.
        patience: end training after this many optimizer steps in a row above the ceiling; 0 only warns.
        monitor: name of the logged metric.

    Raises:
        UserError: ``ceiling`` is not positive, ``patience`` is negative, or the metric is not logged.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import KLCeiling
        >>> trainer = Trainer(callbacks=[KLCeiling(ceiling=0.5, patience=20)], logger=False)

    """

    def __init__(self, ceiling: float = 1.0, patience: int = 10, monitor: str = "grpo/kl") -> None:
        if not ceiling > 0:
            raise UserError(f"KLCeiling: ceiling is {ceiling}: give a KL above 0, such as 1.0")
        if patience < 0:
            raise UserError(f"KLCeiling: patience is {patience}: give 0 (only warn) or more optimizer steps")
        self.ceiling, self.patience, self.monitor = ceiling, patience, monitor
        self.above = 0
        self._step = 0

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._step = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if (logged := trainer.callback_metrics.get(self.monitor)) is None:
            raise UserError(
                f"KLCeiling monitors {self.monitor!r}, which is not logged: set model.loss.kl_coef above 0, so that"
                " there is a reference, or leave the callback out"
            )
        value = float(logged)
        # NaN counts as above the ceiling.
        self.above = 0 if value <= self.ceiling else self.above + 1
        if self.above == 1:
            rank_zero_warn(
                f"{self.monitor} is {value:.3g} at step {self._step}, above the ceiling of {self.ceiling:g}: a lower"
                " learning rate or a higher model.loss.kl_coef keeps the policy closer to its reference"
            )
        if self.patience and self.above >= self.patience:
            rank_zero_warn(
                f"training ends at step {self._step}: {self.monitor} was above {self.ceiling:g} for {self.above} steps"
                " in a row (see KLCeiling.ceiling and KLCeiling.patience)"
            )
            trainer.should_stop = True

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"above": self.above}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.above = state_dict["above"]


class OutOfMemoryAdvice(Callback):
    """Add to an out-of-memory error which settings to lower, for the part of the step in which it was raised.

    The advice is a note of the exception: the last line of its traceback. ``python -m vr1`` prints the advice alone.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from callbacks import OutOfMemoryAdvice
        >>> trainer = Trainer(callbacks=[OutOfMemoryAdvice()], logger=False)

    """

    @override
    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        if is_out_of_memory(exception):
            part = "evaluation"
            if trainer.training and isinstance(pl_module, HasTrainingState):
                part = pl_module.training_state.timer.part
            exception.add_note(memory_advice(part))
