"""The checkpoint that a command starts from: found by path or as ``last``, and checked before anything is loaded."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, WandbLogger

from vr1.checkpoints.shards import REST
from vr1.errors import UserError

# What Lightning takes for --ckpt_path in place of a file; `last` is resolved here.
_KEYWORDS = ("best", "hpc", "registry")
_LISTED = 8
WANDB_KEY = "vr1_wandb"


def find_checkpoint(checkpoint: str, root: Path) -> str:
    """The checkpoint that is meant by ``--ckpt_path``.

    Args:
        checkpoint: a path, a URL, a keyword of Lightning's, or ``last``: the newest checkpoint of the runs in ``root``.
        root: folder of the runs, ``trainer.default_root_dir``.

    Raises:
        UserError: there is no such checkpoint; the message lists those that exist.
    """
    if checkpoint.split(":")[0] in _KEYWORDS or "://" in checkpoint:
        return checkpoint
    existing = checkpoints_below(root)
    if checkpoint == "last" and not Path(checkpoint).exists():
        if not existing:
            raise UserError(f"ckpt_path=last: no run in {root} has a checkpoint; give a path, or the folder as --out")
        return str(existing[0])
    if not Path(checkpoint).exists():
        names = ", ".join(map(str, existing[:_LISTED]))
        listed = f"{root} has {names} (newest first)" if existing else f"{root} has none"
        raise UserError(f"ckpt_path={checkpoint}: no such checkpoint; {listed}")
    return checkpoint


def checkpoints_below(root: Path) -> list[Path]:
    """The checkpoints of all runs in a folder, newest first."""
    found = [*root.glob("checkpoints/*.ckpt"), *root.glob("*/checkpoints/*.ckpt")]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def finished_message(checkpoint: str, trainer: Trainer) -> str | None:
    """A message where a checkpoint is at the end of its training, so that nothing is left to resume; else None."""
    stored = _read(checkpoint)
    step = stored.get("global_step", 0)
    if 0 < trainer.max_steps <= step:
        return (
            f"{checkpoint} is at step {step} of {trainer.max_steps}: this training is finished; to train longer, raise"
            " --trainer.max_steps"
        )
    epochs = stored.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {}).get("current", {})
    if trainer.max_epochs is not None and 0 < trainer.max_epochs <= epochs.get("completed", 0):
        return (
            f"{checkpoint} is at the end of epoch {epochs['completed']} of {trainer.max_epochs}: this training is"
            " finished; to train longer, raise --trainer.max_epochs"
        )
    return None


def wandb_run_id(loggers: Sequence[Logger]) -> str | None:
    """The id of the run that is being recorded, None without Weights & Biases."""
    ids = [logger.version for logger in loggers if isinstance(logger, WandbLogger)]
    return str(ids[0]) if ids and ids[0] else None


def stored_wandb_run_id(checkpoint: str) -> str | None:
    """The id of the run that a checkpoint was written by; None where it names none or cannot be read."""
    return _read(checkpoint).get(WANDB_KEY)


def continue_wandb_run(loggers: Any, checkpoint: str) -> None:
    """Set the id of the checkpoint's run in the settings of each ``WandbLogger`` that has no id yet."""
    settings = loggers if isinstance(loggers, list) else [loggers]
    recording = [item for item in settings if str(getattr(item, "class_path", "")).endswith("WandbLogger")]
    without_id = [item for item in recording if not (item.init_args.get("id") or item.init_args.get("version"))]
    if without_id and (run := stored_wandb_run_id(checkpoint)):
        for item in without_id:
            item.init_args["id"] = run


def _read(checkpoint: str) -> dict[str, Any]:
    """What a checkpoint holds, tensors mapped and not read; empty where it cannot be read."""
    path = Path(checkpoint)
    path = path / REST if path.is_dir() else path
    if not path.is_file():
        return {}
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError):
        # Whether it can be resumed from is for the trainer to find out.
        return {}
    return stored if isinstance(stored, dict) else {}
