"""Which run of Weights & Biases a checkpoint belongs to, so that a resumed training continues it."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger, WandbLogger

from vr1.strategies.shards import REST

KEY = "vr1_wandb"


def run_of(loggers: Sequence[Logger]) -> str | None:
    """The id of the run that is being recorded, None without Weights & Biases."""
    ids = [logger.version for logger in loggers if isinstance(logger, WandbLogger)]
    return str(ids[0]) if ids and ids[0] else None


def run_in(checkpoint: str) -> str | None:
    """The id of the run that a checkpoint was written by; None where it names none or cannot be looked into."""
    path = Path(checkpoint)
    path = path / REST if path.is_dir() else path
    if not path.is_file():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError):
        # Whether it can be resumed from is for the trainer to find out.
        return None
    return found.get(KEY) if isinstance(found, dict) else None


def continue_run(loggers: Any, checkpoint: str) -> None:
    """Set the id of the checkpoint's run in the settings of each ``WandbLogger`` that has none of its own."""
    settings = loggers if isinstance(loggers, list) else [loggers]
    ours = [item for item in settings if str(getattr(item, "class_path", "")).endswith("WandbLogger")]
    waiting = [item for item in ours if not (item.init_args.get("id") or item.init_args.get("version"))]
    if waiting and (found := run_in(checkpoint)):
        for item in waiting:
            item.init_args["id"] = found
