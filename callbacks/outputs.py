"""Where the pictures and tables of a run go, and files that several processes write together."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from vr1.errors import UserError
from vr1.types import Prediction


def predictions_of(callback: Callback, outputs: Any) -> list[Prediction]:
    """The predictions of one batch.

    Args:
        callback: whoever asks, to be named where they are none.
        outputs: what ``validation_step``, ``test_step`` or ``predict_step`` returned.

    Raises:
        TypeError: if the step returned something else.

    Example:
        >>> from vr1.drawing.boxes import example_prediction
        >>> len(predictions_of(Callback(), [example_prediction()]))
        1
    """
    if not isinstance(outputs, list) or not all(isinstance(output, Prediction) for output in outputs):
        raise TypeError(
            f"{type(callback).__name__} wants vr1.types.Prediction, but the step returned {type(outputs).__name__}: let"
            " it return a list of predictions, or leave the callback out"
        )
    return outputs


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


class RankedJsonlWriter:
    """Each process writes a part of its own; at the end the first one, whose part is the file, adds the others to it.

    Args:
        callback: whose file it is, to be named where its folder cannot be written to.
        path: the file; its folder, which all processes must see, is made if it is missing.
        rank: number of this process.

    Raises:
        UserError: if the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     both = [RankedJsonlWriter(Callback(), Path(folder, "answers.jsonl"), rank) for rank in (0, 1)]
        ...     for rank, lines in enumerate(both):
        ...         lines.open()
        ...         lines.write({"rank": rank})
        ...         lines.close()
        ...     both[0].merge(world=2)
        ...     both[0].path.read_text().splitlines()
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
                f" ({error.strerror}): give a folder of your own"
            ) from error

    def open(self, *, anew: bool = False) -> None:
        """Begin to write, behind what this process's part holds or in its place."""
        self._file = self._part.open("w" if anew else "a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a line, which is in the file when this returns."""
        assert self._file is not None
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """End writing; of no effect where it is ended."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def merge(self, world: int) -> None:
        """Add the parts of all processes to the file and remove them; on the first one, when all have closed theirs."""
        with self.path.open("a", encoding="utf-8") as merged:
            for rank in range(1, world):
                part = _part(self.path, rank)
                merged.write(part.read_text(encoding="utf-8"))
                part.unlink()


def _part(path: Path, rank: int) -> Path:
    return path if rank == 0 else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")
