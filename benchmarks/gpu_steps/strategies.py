"""FSDP2 and DDP with one process: a clipped step, a checkpoint, and the same again from it."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from gpu_steps.run import Bench
from vr1.data import SceneDataModule
from vr1.losses import GRPO
from vr1.modules.grpo import GRPOModule
from vr1.rollout import Sampling
from vr1.strategies import FullySharded


def run(bench: Bench) -> None:
    """Measure."""
    made = {
        "FSDP2": FullySharded,
        "FSDP2, sharded checkpoints": partial(FullySharded, sharded_checkpoints=True),
        "DDP": lambda: "ddp",
    }
    for name, strategy in made.items():
        with bench.part(name):
            bench.record(**{name: _steps(bench, strategy)})


def _steps(bench: Bench, strategy: Any) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        first = _fit(bench, strategy(), 1, Path(folder))
        second = _fit(bench, strategy(), 2, Path(folder), Path(folder) / "last.ckpt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return {"loss": first, "loss_after_resume": second}


def _fit(bench: Bench, strategy: Any, steps: int, folder: Path, checkpoint: Path | None = None) -> float:
    L.seed_everything(0, verbose=False)
    module = GRPOModule(
        sampling=Sampling(group_size=4, max_new_tokens=32 if bench.device == "cuda" else 8),
        loss=GRPO(kl_coef=0.1),
        optimizer=partial(torch.optim.AdamW, lr=1e-4),
    )
    trainer = bench.checkpointing_trainer(folder, steps, precision=bench.precision, strategy=strategy)
    prompts = 4 if bench.device == "cuda" else 2
    data = SceneDataModule(train_scenes=8, val_scenes=4, batch_size=prompts, num_workers=0)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return float(trainer.callback_metrics["grpo/loss"])
