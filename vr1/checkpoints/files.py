"""Checkpoint files that are either whole or not there, read without running any code that they hold."""

import contextlib
import errno
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from vr1.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file and renames when all of it is on the disk, so that a kill at any moment does no harm.

    Lightning's own writes to the system's folder for temporary files, from where a move to another disk is a copy that
    can be cut short; and it holds all of the file in memory first.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, f"{folder}/last.ckpt")
        ...     AtomicCheckpointIO().load_checkpoint(f"{folder}/last.ckpt")
        {'state_dict': {}}
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: the disk is full; what was at ``path``, and every other checkpoint, is still there.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        part = target.with_name(f".{target.name}.part")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
            _sync_folder(target.parent)
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                part.unlink()
            if not _is_full(error, target.parent):
                raise
            raise UserError(
                f"{target}: the disk is full, so this checkpoint was not written; {_others(target)}; free some space,"
                " or give another folder as trainer.default_root_dir",
            ) from error

    @override
    def load_checkpoint(
        self, path: _PATH, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, without running code from it unless ``weights_only`` is False.

        Raises:
            UserError: it is damaged, or holds more than tensors and plain values.
        """
        if "://" not in str(path):
            return read_checkpoint(path, weights_only=weights_only is not False)
        loaded: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only is not False)
        return loaded


def read_checkpoint(path: _PATH, weights_only: bool = True, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint file onto the CPU.

    Args:
        path: a file written by `AtomicCheckpointIO` or by Lightning.
        weights_only: read tensors and plain values only; False runs whatever code the file names.
        mmap: leave tensors in the file until they are used, which processes of one machine then share.

    Raises:
        UserError: there is no such file, it is damaged, or it holds more than tensors and plain values.
    """
    if Path(path).is_dir():
        raise UserError(
            f"checkpoint {path} is a folder of shards: train on from it with the sharded strategy of its run, or make a"
            f" model of it by `python -m vr1 export --ckpt {path} --out FOLDER`"
        )
    if not Path(path).is_file():
        raise UserError(f"checkpoint {path} does not exist; give the path of a .ckpt file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint {path} holds more than tensors and plain values, or is damaged; it is not read, since that"
            " could run code from it: give one that vr1 wrote"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"checkpoint {path} is damaged or cut short ({error}); give an earlier one") from error
    if not isinstance(loaded, dict) or "state_dict" not in loaded:
        raise UserError(f"checkpoint {path} holds no Lightning checkpoint (no state_dict); give one that vr1 wrote")
    return loaded


def _is_full(error: BaseException, folder: Path) -> bool:
    """Whether a failed write failed for want of space; torch tells of it by an error of its own, without number."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    causes = (error.__cause__, error.__context__)
    if any(isinstance(cause, OSError) and _is_full(cause, folder) for cause in causes):
        return True
    return "PytorchStreamWriter failed" in str(error) or "No space left" in str(error)


def _others(target: Path) -> str:
    there = sorted(target.parent.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    return f"the last good one is {there[-1]}" if there else "there is no earlier one in its folder"


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself survive a loss of power, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
