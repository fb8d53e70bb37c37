"""What the callbacks share: the run's folder, pictures in it and in loggers, JSON lines of several processes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vr1.errors import UserError
from vr1.runs.folder import TILES
from vr1.types import Prediction


def require_module(callback: Callback, pl_module: "pl.LightningModule", kind: type[Any]) -> None:
    """Check that a module is of the kind that a callback requires; call it in ``setup``.

    Args:
        callback: named in the error.
        pl_module: the module that the trainer runs.
        kind: :class:`~vr1.modules.base.DetectionModule`, a subclass, or a protocol that modules of vr1 follow.

    Raises:
        UserError: the module is of another kind.

    Example:
        >>> require_module(Callback(), pl.LightningModule(), pl.LightningModule)
    """
    if not isinstance(pl_module, kind):
        raise UserError(
            f"{type(callback).__name__} requires a module of vr1 such as GRPOModule, and {type(pl_module).__name__} is"
            " none: leave the callback out"
        )


def predictions_of(callback: Callback, outputs: Any) -> list[Prediction]:
    """The predictions of one batch.

    Args:
        callback: named in the error.
        outputs: what ``validation_step``, ``test_step`` or ``predict_step`` returned.

    Raises:
        TypeError: the step returned something else.

    Example:
        >>> from vr1.drawing.boxes import example_prediction
        >>> len(predictions_of(Callback(), [example_prediction()]))
        1
    """
    if not isinstance(outputs, list) or not all(isinstance(output, Prediction) for output in outputs):
        raise TypeError(
            f"{type(callback).__name__} requires a list of vr1.types.Prediction, but the step returned"
            f" {type(outputs).__name__}: return a list of predictions, or leave the callback out"
        )
    return outputs


def run_folder(trainer: "pl.Trainer") -> Path:
    """The folder of this run, the same on every process.

    It communicates between the processes, so call it on all of them, in ``setup``.

    Args:
        trainer: any trainer.

    Returns:
        The log folder of the first CSV or TensorBoard logger; with other loggers ``save_dir/name/version``, where
        Lightning writes checkpoints too; without loggers ``default_root_dir``.
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
    """Write a picture into the run's folder and log it to TensorBoard and Weights & Biases.

    Call it on rank zero only. ``fast_dev_run`` writes nothing, as Lightning does with logs and checkpoints.

    Args:
        trainer: the trainer that runs.
        folder: what :func:`run_folder` returned.
        name: path below ``folder``, with ``.png``.
        picture: RGB picture; the file says where the tiles of a sheet are.
        key: name of the picture in the loggers, which store one picture per step under it.

    Returns:
        The path of the picture.
    """
    path = folder / name
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = PngInfo()
    texts.add_text(TILES, json.dumps(picture.info.get("tiles", [])))
    picture.save(path, pnginfo=texts)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, np.asarray(picture), trainer.global_step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(key, [picture], step=trainer.global_step)
    return path


class RankedJsonlWriter:
    """A file of JSON lines that several processes write: one part per rank, merged at the end.

    The part of rank 0 is the file itself.

    Args:
        callback: named in the error.
        path: the file; its folder is created if missing, and all processes must see it.
        rank: rank of this process.

    Raises:
        UserError: the folder is not writable.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writers = [RankedJsonlWriter(Callback(), Path(folder, "answers.jsonl"), rank) for rank in (0, 1)]
        ...     for rank, writer in enumerate(writers):
        ...         writer.open()
        ...         writer.write({"rank": rank})
        ...         writer.close()
        ...     writers[0].merge(world_size=2)
        ...     writers[0].path.read_text().splitlines()
        ['{"rank": 0}', '{"rank": 1}']
    """

    def __init__(self, callback: Callback, path: Path, rank: int) -> None:
        self.path, self._part = path, _part(path, rank)
        self._file: TextIO | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._part.open("a").close()
        except OSError as error:
            raise UserError(
                f"{type(callback).__name__}: output_dir is {str(path.parent)!r}, which cannot be written to"
                f" ({error.strerror}): give another folder"
            ) from error

    def open(self, *, append: bool = True) -> None:
        """Open this process's part; ``append=False`` removes what it contains."""
        self._file = self._part.open("a" if append else "w", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Write one line and flush it."""
        assert self._file is not None
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close this process's part, if it is open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def merge(self, world_size: int) -> None:
        """Append the parts of all other ranks to the file and remove them; on rank 0, after all ranks have closed."""
        with self.path.open("a", encoding="utf-8") as merged:
            for rank in range(1, world_size):
                part = _part(self.path, rank)
                merged.write(part.read_text(encoding="utf-8"))
                part.unlink()


def _part(path: Path, rank: int) -> Path:
    return path if rank == 0 else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")
