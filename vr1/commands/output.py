"""Where a run writes: one folder for the loggers, the checkpoints and all that callbacks draw."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from vr1.errors import UserError

_ROOT = "--trainer.default_root_dir"
_NUMBERED = ("CSVLogger", "TensorBoardLogger")
_VERSION = re.compile(r"version_(\d+)")


def with_out(arguments: Sequence[str]) -> list[str]:
    """The arguments with ``--out FOLDER`` as the setting that it is short for.

    Example:
        >>> with_out(["--config", "a.yaml", "--out", "runs/mine"])
        ['--config', 'a.yaml', '--trainer.default_root_dir', 'runs/mine']
    """
    replaced = [_ROOT if argument == "--out" else argument for argument in arguments]
    return [
        f"{_ROOT}={argument.removeprefix('--out=')}" if argument.startswith("--out=") else argument
        for argument in replaced
    ]


def place_outputs(trainer: Any, arguments: Sequence[str]) -> None:
    """Set the folders of loggers and callbacks to that of the run.

    An empty ``save_dir`` or ``output_dir`` is the run's folder, ``trainer.default_root_dir``. Where the latter is given
    on the command line, it is the folder of all of them, except of those that are given there too.

    Args:
        trainer: the trainer's settings, changed in place.
        arguments: the arguments of the command.

    Example:
        >>> from jsonargparse import Namespace
        >>> logger = Namespace(class_path="CSVLogger", init_args=Namespace(save_dir=""))
        >>> place_outputs(Namespace(default_root_dir="runs/mine", logger=[logger], callbacks=None), [])
        >>> logger.init_args.save_dir
        'runs/mine'
    """
    names = {argument.partition("=")[0] for argument in arguments}
    root = str(trainer.default_root_dir or ".")
    for kind, key in (("logger", "save_dir"), ("callbacks", "output_dir")):
        named = any(name.startswith(f"--trainer.{kind}") and name.endswith(f".{key}") for name in names)
        moved = _ROOT in names and not named
        for item in _items(trainer[kind]):
            folder = item.init_args.get(key)
            if folder is not None and (moved or str(folder) == ""):
                item.init_args[key] = root


def share_version(trainer: Any) -> None:
    """Let loggers that number the runs of one folder give this run one number, and so one folder.

    Each would otherwise count the folders that it finds when it first writes, the other's among them.

    Args:
        trainer: the trainer's settings, changed in place.
    """
    for logger in _items(trainer.logger):
        if str(logger.class_path).endswith(_NUMBERED) and logger.init_args.get("version") is None:
            name = logger.init_args.get("name", "lightning_logs")
            logger.init_args["version"] = _next_version(Path(str(logger.init_args.save_dir), str(name or "")))


def output_folders(trainer: Trainer) -> list[str]:
    """The folders that a trainer's loggers write to; without loggers, that of the trainer."""
    folders = [str(logger.save_dir) for logger in trainer.loggers if logger.save_dir]
    return list(dict.fromkeys(folders)) or [str(trainer.default_root_dir)]


def check_writable(folder: str) -> None:
    """Refuse a folder for results that cannot be written to; one that is missing will be made.

    Raises:
        UserError: the folder, or the nearest existing one above it, is a file or write-protected.
    """
    if "://" in folder:
        return
    existing = Path(folder).absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        fault = "no folder" if not existing.is_dir() else "write-protected"
        raise UserError(
            f"{folder}: results cannot be written there, since {existing} is {fault}; give another folder, as --out or"
            " the save_dir of trainer.logger"
        )


def _items(settings: Any) -> list[Any]:
    """The settings of all loggers or callbacks, of which there may be none, one or several."""
    items = settings if isinstance(settings, list) else [settings]
    return [item for item in items if hasattr(item, "class_path") and item.get("init_args") is not None]


def _next_version(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    versions = [int(match[1]) for path in folder.iterdir() if (match := _VERSION.fullmatch(path.name))]
    return max(versions, default=-1) + 1
