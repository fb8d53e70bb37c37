"""The commands with a trainer, ``python -m vr1 fit|validate|test|predict``: LightningCLI and checks of our own."""

import os
import pickle
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from typing_extensions import override

import vr1.data
import vr1.modules.grpo
import vr1.modules.sft  # noqa: F401 - what is imported can be named without its package: --model SFTModule
from vr1.checkpoints.shards import REST
from vr1.commands.model_argument import with_model
from vr1.data.datamodule import RecordDataModule
from vr1.errors import UserError, innermost, is_out_of_memory, user_message
from vr1.modules.base import DetectionModule
from vr1.modules.state import RunInfo
from vr1.runs.folder import flat_settings

# What Lightning takes for --ckpt_path beside files.
_KEYWORDS = ("best", "last", "hpc", "registry")


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run one command with a trainer.

    Args:
        argv: the words after ``python -m vr1``; None takes the process's own.

    Returns:
        2 for a user's mistake, which is told in one line; else None.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        _run(_CLI, words, None if argv is None else words)
    except (ValueError, OSError) as error:
        if (ours := user_message(error)) is None:
            raise
        print(f"vr1: error: {ours}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not (is_out_of_memory(error) and (notes := getattr(error, "__notes__", None))):
            raise
        first = (str(error) or type(error).__name__).splitlines()[0]
        print(f"vr1: error: {notes[-1]} ({first})", file=sys.stderr)
        return 2
    return None


def settings_of(words: Sequence[str]) -> Any:
    """The settings that a command would run with, defaults included; nothing is made of them.

    Args:
        words: the words after ``python -m vr1``, the command first.
    """
    return _run(_Settings, words, words).config[words[0]]


def objects_of(words: Sequence[str]) -> tuple[DetectionModule, RecordDataModule]:
    """The module and the data that a command would run with; no weights are loaded and nothing is run.

    Args:
        words: the words after ``python -m vr1``, the command first.
    """
    made = _run(_Objects, words, words)
    return made.model, made.datamodule


def _run(kind: type["_CLI"], words: Sequence[str], args: Sequence[str] | None) -> "_CLI":
    return kind(
        DetectionModule,
        RecordDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=_SaveConfig,
        save_config_kwargs={"overwrite": True},
        parser_class=_Parser,
        parser_kwargs={"prog": "vr1"},
        args=args,
        command=shlex.join(["python", "-m", "vr1", *words]),
    )


class _Parser(LightningArgumentParser):
    """Tells a mistake in one line where one of our own checks found it, and never with all the settings' names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Taken for an abbreviation, a mistyped name would go unnoticed.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    @override
    def parse_args(self, args: Any = None, *more: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        given = [_null(argument) for argument in (sys.argv[1:] if args is None else args)]
        return super().parse_args(with_model(given), *more, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        if ex is not None and (ours := user_message(ex)) is not None:
            sys.stderr.write(f"vr1: error: {ours}\n")
            self.exit(2)
        prog = (getattr(ex, "subcommand_parser", None) or self).prog.replace(" [options]", "")
        sys.stderr.write(f"vr1: error: {innermost(message)}\n")
        sys.stderr.write(f"`{prog} --help` lists the settings; with --model.help GRPOModule, those of a class\n")
        self.exit(2)


def _null(argument: str) -> str:
    """Write None as YAML does.

    jsonargparse (tried: 4.53) reads the ``null`` of ``--model.policy.quantize null`` and gives it to the parser of the
    class as ``--policy.quantize=None``, which is a text.
    """
    return (
        f"{argument.removesuffix('None')}null" if argument.startswith("--") and argument.endswith("=None") else argument
    )


class _CLI(LightningCLI):
    """LightningCLI that finds out before any model is loaded what would end a run later."""

    def __init__(self, *args: Any, command: str, **kwargs: Any) -> None:
        self.command = command
        super().__init__(*args, **kwargs)

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with warnings.catch_warnings():
            # The words of `plan` and `check` are not quite those of the process, which Lightning takes for a mistake.
            warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended")
            super().parse_arguments(parser, args)

    @override
    def _parse_ckpt_path(self) -> None:
        """Leave the checkpoint alone: it holds no settings of the configuration, and the run reads it once anyway."""

    @override
    def after_instantiate_classes(self) -> None:
        parser, settings = self._parser(self.subcommand), self.config[self.subcommand]
        self.model.set_run_info(RunInfo(command=self.command, config=parser.dump(settings)))

    @override
    def before_instantiate_classes(self) -> None:
        checkpoint = str(self.config[self.subcommand].get("ckpt_path") or "")
        known = checkpoint.split(":")[0] in _KEYWORDS or "://" in checkpoint
        if checkpoint and not known and not Path(checkpoint).exists():
            raise UserError(f"ckpt_path={checkpoint}: no such checkpoint; check the path")
        if checkpoint and not known and self.subcommand == "fit":
            continue_run(self.config[self.subcommand].trainer.logger, checkpoint)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        _share_version(trainer.loggers)
        folders = [logger.save_dir for logger in trainer.loggers if logger.save_dir] or [trainer.default_root_dir]
        for folder in dict.fromkeys(map(str, folders)):
            _refuse_unwritable(folder)
        return trainer


class _Objects(_CLI):
    """Makes the objects and stops."""

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


class _Settings(_CLI):
    """Reads the settings and stops."""

    @override
    def instantiate_classes(self) -> None:
        """Make nothing."""

    @override
    def after_instantiate_classes(self) -> None:
        """Nothing was made."""

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


class _SaveConfig(SaveConfigCallback):
    """Keeps the settings of a run beside its results, and in Weights & Biases where that is used."""

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(flat_settings(self.config.as_dict()))

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if (run := run_of(trainer.loggers)) is not None:
            checkpoint[KEY] = run


def _share_version(loggers: Sequence[Logger]) -> None:
    """Let loggers that number the runs of one folder give this run one number, and so one folder."""
    numbers: dict[tuple[Any, Any], Any] = {}
    for logger in loggers:
        if isinstance(logger, CSVLogger | TensorBoardLogger) and logger._version is None:
            # Each would count the folders that it finds when it first writes, the other's among them.
            logger._version = numbers.setdefault((logger.save_dir, logger.name), logger.version)


def _refuse_unwritable(folder: str) -> None:
    """Refuse a folder for results in which nothing can be made; one that is missing will be made."""
    if "://" in folder:
        return
    there = Path(folder).absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK):
        fault = "no folder" if not there.is_dir() else "write-protected"
        raise UserError(
            f"{folder}: results cannot be written there, since {there} is {fault}; give another folder, as"
            " trainer.default_root_dir or the save_dir of trainer.logger"
        )


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
