"""vr1's side: `GRPOModule` under a Lightning `Trainer`, as ``python -m vr1 fit`` runs it."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from grpo_step.questions import questions
from grpo_step.settings import StepSettings
from grpo_step.turns import Turns
from vr1.losses import GRPO
from vr1.modules.grpo import GRPOModule
from vr1.policy.loading import Lora, PolicySource
from vr1.prompts import PromptBatch
from vr1.rollout import Sampling
from vr1.types import DetectionRecord


def policy_source(settings: StepSettings, folder: Path) -> PolicySource:
    """The model in a folder, loaded as the settings say."""
    return PolicySource(
        path=str(folder),
        dtype=settings.dtype,
        lora=Lora() if settings.lora else None,
        quantize=settings.quantize,
        gradient_checkpointing=settings.checkpointing,
    )


class _Clock(L.Callback):
    """Measures the parts of each step."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.moment = turns, 0.0
        self.before: dict[str, float] = {}

    def _lap(self) -> float:
        now = self.turns.now()
        seconds, self.moment = now - self.moment, now
        return seconds

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.moment = self.turns.now()
        self.turns.parts["prompt"] = self.moment - self.turns.started
        self.before = dict(module.training_state.timer.seconds)

    def on_before_backward(self, trainer: L.Trainer, module: Any, loss: torch.Tensor) -> None:
        within = self._lap()
        seconds = module.training_state.timer.seconds
        measured = {part: seconds[part] - self.before.get(part, 0.0) for part in seconds}
        prefill = float(trainer.callback_metrics["perf/prefill_seconds"])
        parts = self.turns.parts
        parts["prefill"], parts["decode"] = prefill, measured["rollout"] - prefill
        parts["reward"], parts["reference"] = measured["reward"], measured.get("reference", 0.0)
        parts["policy forward"] = within - sum(measured.values())

    def on_after_backward(self, trainer: L.Trainer, module: Any) -> None:
        self.turns.parts["policy backward"] = self._lap()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.turns.parts["optimizer"] = self._lap()
        self.turns.done()


def run(turns: Turns, settings: StepSettings, folder: Path, steps: int) -> None:
    """Train for some steps, each when it is this side's turn."""
    L.seed_everything(0, verbose=False)
    module = GRPOModule(
        policy=policy_source(settings, folder),
        sampling=Sampling(group_size=settings.group_size, max_new_tokens=settings.new_tokens),
        loss=GRPO(kl_coef=settings.kl_coef),
        max_prompt_tokens=32768,
        optimizer=partial(torch.optim.AdamW, lr=1e-6, weight_decay=0.0, fused=True),
    )

    def collate(records: list[DetectionRecord]) -> PromptBatch:
        turns.wait()
        return module.encoder(records)

    loader = DataLoader(
        questions(settings, module.encoder, steps),  # type: ignore[arg-type]
        batch_size=settings.prompts,
        collate_fn=collate,
    )
    trainer = L.Trainer(
        accelerator="gpu" if settings.device == "cuda" else "cpu",
        devices=1,
        max_steps=steps,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[_Clock(turns)],
    )
    trainer.fit(module, loader)
