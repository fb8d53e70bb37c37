"""Guards of long runs: non-finite gradients, a policy far from its reference, memory that runs out."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from callbacks.outputs import run_folder
from vr1.errors import UserError, is_out_of_memory, memory_advice
from vr1.modules.state import HasTrainingState, TrainingState


def save_batch(folder: Path, batch: Any, rollout_batch: Any, tokenizer: Any, **told: Any) -> Path:
    """Write the images, the questions and answers as JSON, and the tensors.

    Args:
        folder: made where it is missing.
        batch: a `vr1.prompts.PromptBatch`.
        rollout_batch: the `vr1.types.RolloutBatch` of its completions; None where there is none.
        tokenizer: decodes the completions.
        told: plain values for the JSON file.

    Returns:
        The folder: ``batch.json``, a picture a record, and ``tensors.pt`` (loads with ``weights_only=True``).
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (record, instruction) in enumerate(zip(batch.records, batch.instructions, strict=True)):
        record.image.save(folder / f"{number}.png")
        row = {"picture": f"{number}.png", "origin": record.origin, "image_id": record.image_id}
        row |= {"instruction": instruction, "labels": list(record.labels), "boxes_xyxy": record.boxes_xyxy.tolist()}
        if rollout_batch is not None:
            answers = [
                tokens[kept]
                for tokens, kept in zip(rollout_batch.tokens[number], rollout_batch.mask[number], strict=True)
            ]
            row["completions"] = tokenizer.batch_decode([answer.tolist() for answer in answers])
            row["advantages"] = rollout_batch.advantages[number].tolist()
        rows.append(row)
    text = json.dumps({**told, "records": rows}, indent=2, ensure_ascii=False)
    (folder / "batch.json").write_text(text + "\n", encoding="utf-8")
    tensors = {"tokens": batch.tokens.cpu(), "mask": batch.mask.cpu()}
    tensors |= {name: value.cpu() for name, value in batch.vision.items()}
    torch.save(
        {"prompts": tensors, "rollout_batch": rollout_batch and rollout_batch.state_dict()}, folder / "tensors.pt"
    )
    return folder


class NonFiniteGuard(Callback):
    """Skip the update of a step whose loss or gradient is NaN or infinite; stop the run after several in a row.

    A skipped step leaves weights and optimizer as they were; it counts as a step, and the learning rate goes on. How
    many were skipped so far is logged as ``guard/skipped_steps`` and saved in the checkpoint. The batch that the run
    stopped at is written into the run's folder: ``non_finite/step_N`` (:func:`~callbacks.guards.save_batch`).

    Args:
        max_consecutive: stop when so many steps in a row were skipped.

    Note:
        All processes skip a step together, whichever of them it went wrong on; each writes its own part of the batch.

    Raises:
        UserError: ``max_consecutive`` is less than 1; and in training, to stop it.

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
            position = batch_idx % trainer.accumulate_grad_batches
            state = pl_module.training_state if isinstance(pl_module, HasTrainingState) else TrainingState()
            rollout_batch = state.rollout_batches.get(position)
            save_batch(
                folder, batch, rollout_batch, module.processor.tokenizer, step=trainer.global_step, bad=self._bad
            )
            saved = f"; the last batch is in {folder}"
        raise UserError(
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


class KLCeiling(Callback):
    """Warn when the KL to the reference is above a ceiling, and end training when it stays there.

    The run ends as one that is complete does: with its last checkpoint, export and tables.

    Args:
        ceiling: mean KL a token, in nats, above which it is too far.
        patience: end training after so many optimizer steps in a row above the ceiling; 0 only warns.
        monitor: the metric that is watched.

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
                f"KLCeiling watches {self.monitor!r}, which is not logged: set model.loss.kl_coef above 0, so that"
                " there is a reference, or leave the callback out"
            )
        value = float(logged)
        # A KL that is no number is no longer below any ceiling.
        self.above = 0 if value <= self.ceiling else self.above + 1
        if self.above == 1:
            rank_zero_warn(
                f"{self.monitor} is {value:.3g} at step {self._step}, above the ceiling of {self.ceiling:g}: a lower"
                " learning rate or a higher model.loss.kl_coef keeps the policy nearer to its reference"
            )
        if self.patience and self.above >= self.patience:
            rank_zero_warn(
                f"training ends at step {self._step}: {self.monitor} was above {self.ceiling:g} for {self.above} steps"
                " in a row (KLCeiling.ceiling and .patience say how far is too far)"
            )
            trainer.should_stop = True

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"above": self.above}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.above = state_dict["above"]


class OutOfMemoryAdvice(Callback):
    """Add to an out-of-memory error what to change, by the part of the step in which it was raised.

    The advice is a note of the exception: the last line of its traceback. ``python -m vr1`` ends with it alone.

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
