"""Where the pictures and tables of a run go: its folder, TensorBoard and Weights & Biases."""

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image


def run_folder(trainer: "pl.Trainer") -> Path:
    """The folder of this run, the same on every process.

    It talks to the other processes, so call it on all of them: from ``setup``.

    Args:
        trainer: any trainer.

    Returns:
        The log folder of the first CSV or TensorBoard logger; with other loggers ``save_dir/name/version``, where
        Lightning puts checkpoints too; without loggers ``default_root_dir``.
    """
    folder = Path(trainer.default_root_dir)
    local = [logger for logger in trainer.loggers if isinstance(logger, CSVLogger | TensorBoardLogger)]
    if local:
        folder = Path(local[0].log_dir)
    elif trainer.loggers:
        logger = trainer.loggers[0]
        parts = (str(part) for part in (logger.name, logger.version) if part not in (None, ""))
        folder = Path(logger.save_dir or trainer.default_root_dir, *parts)
    return Path(trainer.strategy.broadcast(str(folder)))


def write_picture(trainer: "pl.Trainer", folder: Path, name: str, picture: Image.Image, *, key: str) -> Path:
    """Write a picture into the run's folder and hand it to the loggers that show pictures.

    Call it on rank zero only. As Lightning does with logs and checkpoints, ``fast_dev_run`` leaves nothing behind.

    Args:
        trainer: the trainer that runs.
        folder: what :func:`run_folder` returned.
        name: path below ``folder``, with ``.png``.
        picture: RGB picture.
        key: name of the picture in the loggers, which keep one picture per step under it.

    Returns:
        The path of the picture.
    """
    path = folder / name
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, np.asarray(picture), trainer.global_step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(key, [picture], step=trainer.global_step)
    return path
