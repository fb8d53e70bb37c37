"""Checkpoint files: written atomically, read without running code that they contain."""

import contextlib
import errno
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from vr1.errors import UserError

StrPath = str | Path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically: to a temporary file in the same folder, which is renamed once it is on the disk.

    A process that is killed at any moment leaves the earlier checkpoint intact. Lightning's own plugin writes to the
    system's folder for temporary files, from which a move to another disk is a copy that can be interrupted, and builds
    the full file in memory first.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, f"{folder}/last.ckpt")
        ...     AtomicCheckpointIO().load_checkpoint(f"{folder}/last.ckpt")
        {'state_dict': {}}
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: StrPath, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: the disk is full; the earlier file at ``path`` and all other checkpoints are intact.
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
            if not _is_disk_full(error):
                raise
            raise UserError(
                f"{target}: the disk is full, so this checkpoint was not written; {_newest(target)}; free some space,"
                " or set trainer.default_root_dir to another folder",
            ) from error

    @override
    def load_checkpoint(
        self, path: StrPath, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, without running code from it unless ``weights_only`` is False.

        Raises:
            UserError: it is damaged, or contains more than tensors and plain values.
        """
        if "://" not in str(path):
            return read_checkpoint(path, weights_only=weights_only is not False)
        loaded: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only is not False)
        return loaded


def read_checkpoint(path: StrPath, weights_only: bool = True, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint file onto the CPU.

    Args:
        path: a file written by `AtomicCheckpointIO` or by Lightning.
        weights_only: read tensors and plain values only; False runs any code that the file names.
        mmap: map the tensors of the file into memory, which processes of one machine then share.

    Raises:
        UserError: there is no such file, it is damaged, or it contains more than tensors and plain values.
    """
    if Path(path).is_dir():
        raise UserError(
            f"checkpoint {path} is a folder of shards: resume it with the sharded strategy of its run, or convert it"
            f" with `python -m vr1 export --ckpt {path} --out FOLDER`"
        )
    if not Path(path).is_file():
        raise UserError(f"checkpoint {path} does not exist; give the path of a .ckpt file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint {path} contains more than tensors and plain values, or is damaged; it is not read, since this"
            " could run code from it; give a checkpoint that vr1 wrote"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"checkpoint {path} is damaged or truncated ({error}); give an earlier one") from error
    if not isinstance(loaded, dict) or "state_dict" not in loaded:
        raise UserError(f"checkpoint {path} is no Lightning checkpoint (no state_dict); give one that vr1 wrote")
    return loaded


def _is_disk_full(error: BaseException) -> bool:
    """Whether a write failed because the disk is full; torch raises an error of its own, without an error number."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    causes = (error.__cause__, error.__context__)
    if any(isinstance(cause, OSError) and _is_disk_full(cause) for cause in causes):
        return True
    return "PytorchStreamWriter failed" in str(error) or "No space left" in str(error)


def _newest(target: Path) -> str:
    files = sorted(target.parent.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    return f"the last good one is {files[-1]}" if files else "there is no earlier one in its folder"


def _sync_folder(folder: Path) -> None:
    """Make the rename survive a power failure, if the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
