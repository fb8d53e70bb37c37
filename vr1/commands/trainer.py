"""The commands with a trainer, ``python -m vr1 fit|validate|test|predict``: LightningCLI with checks before it runs."""

import importlib.util
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from typing_extensions import override

import vr1.data
import vr1.modules.grpo
import vr1.modules.sft
from vr1.commands.allocator import use_expandable_segments
from vr1.commands.console import quiet_console
from vr1.commands.model_argument import with_model, with_torch_optimizer
from vr1.commands.output import check_writable, output_folders, place_outputs, share_version, with_out
from vr1.commands.renamed import renamed_hint
from vr1.commands.resume import WANDB_KEY, continue_wandb_run, find_checkpoint, finished_message, wandb_run_id
from vr1.data.datamodule import RecordDataModule
from vr1.errors import UserError, innermost, is_out_of_memory, user_message
from vr1.modules.base import DetectionModule
from vr1.modules.state import RunInfo
from vr1.runs.folder import flat_settings

ROOT = Path(vr1.__file__).parents[1]
# Read before every configuration, so that each configuration holds only what is special to it.
BASE_CONFIG = ROOT / "configs" / "base.yaml"
# What `fit` adds where a configuration has no callback of the kind: Ctrl-C saves, and every run leaves last.ckpt.
_FIT_CALLBACKS = {
    "callbacks.Preemption": ("Preemption",),
    "callbacks.LastCheckpoint": ("LastCheckpoint", "ModelCheckpoint"),
}
_INTERRUPTED = 130
# Settings of the trainer that only fit some machines, or each other.
_MACHINE = ("accelerator", "devices", "num_nodes", "strategy", "precision")


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run one command with a trainer.

    Args:
        argv: the arguments after ``python -m vr1``; None takes those of the process.

    Returns:
        None after success, 2 after a mistake of the user, which is printed in one line, 130 after Ctrl-C.
    """
    quiet_console()
    try:
        prepare(sys.argv[1:] if argv is None else argv).run()
    except (ValueError, OSError) as error:
        if (message := user_message(error)) is None:
            raise
        return _fail(message)
    except MisconfigurationException as error:
        return _fail(" ".join(str(error).split()))
    except (RuntimeError, MemoryError) as error:
        if not (is_out_of_memory(error) and (notes := getattr(error, "__notes__", None))):
            raise
        first = (str(error) or type(error).__name__).splitlines()[0]
        return _fail(f"{notes[-1]} ({first})")
    except KeyboardInterrupt:
        return _INTERRUPTED
    except SystemExit as stop:
        # Lightning turns Ctrl-C into the exit status 1.
        if isinstance(stop.__context__, KeyboardInterrupt):
            return _INTERRUPTED
        raise
    return None


def prepare(arguments: Sequence[str]) -> "TrainerCommand":
    """Everything that a command would run with; no weights are loaded and nothing is run.

    Args:
        arguments: the arguments after ``python -m vr1``, the command first.

    Raises:
        UserError: settings that cannot work.
        SystemExit: settings that cannot be parsed, after a message; or ``--help`` and the like.
    """
    return TrainerCommand(arguments[0], arguments[1:])


def settings_of(arguments: Sequence[str]) -> Any:
    """The settings that a command would run with, defaults included; no object is built.

    Args:
        arguments: the arguments after ``python -m vr1``, the command first.
    """
    return _Settings(arguments[0], arguments[1:]).config


def objects_of(arguments: Sequence[str]) -> tuple[DetectionModule, RecordDataModule]:
    """The module and the data that a command would run with; no weights are loaded and nothing is run.

    Args:
        arguments: the arguments after ``python -m vr1``, the command first.
    """
    command = prepare(arguments)
    return command.model, command.datamodule


class TrainerCommand(LightningCLI):
    """The trainer, module and data of one command, checked before any model is loaded.

    Attributes:
        config: the settings, as they are saved with the results.
        trainer: the trainer.
        model: the module, without weights.
        datamodule: the data module.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        arguments: the arguments after it.
    """

    def __init__(self, command: str, arguments: Sequence[str]) -> None:
        _load_own_callbacks()
        self.command, self.arguments = command, with_torch_optimizer(with_model(command, with_out(arguments)))
        self.shell_command = shlex.join(["python", "-m", "vr1", command, *arguments])
        self._run_arguments: list[str] = []
        super().__init__(
            DetectionModule,
            RecordDataModule,
            run=False,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=_SaveConfig,
            save_config_kwargs={"overwrite": True},
            parser_class=_Parser,
            parser_kwargs={
                "prog": f"vr1 {command}",
                "description": "--out FOLDER puts everything of a run there; it is short for"
                f" --trainer.default_root_dir. Settings that are not given are those of {BASE_CONFIG}.",
                "default_config_files": [str(BASE_CONFIG)],
            },
            args=self.arguments,
        )

    def run(self) -> None:
        """Run the command; a training that is finished already is reported instead."""
        run_settings = {name: self.config_init.get(name) for name in self._run_arguments}
        checkpoint = run_settings.get("ckpt_path")
        if self.command == "fit" and checkpoint and (message := finished_message(checkpoint, self.trainer)):
            print(f"vr1: {message}")
            return
        getattr(self.trainer, self.command)(model=self.model, datamodule=self.datamodule, **run_settings)

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        skip: set[str | int] = set(self.subcommands()[self.command])
        self._run_arguments = parser.add_method_arguments(Trainer, self.command, skip=skip)

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)
        if self.command == "fit":
            _add_fit_callbacks(self.config.trainer)
        self.save_config_kwargs["settings"] = self.config.clone()

    @override
    def before_instantiate_classes(self) -> None:
        trainer = self.config.trainer
        sampler = self.config.model.init_args.get("sampler")
        use_expandable_segments(None if sampler is None else sampler.get("init_args"))
        place_outputs(trainer, self.arguments)
        share_version(trainer)
        root = trainer.default_root_dir or "."
        if self.config.get("ckpt_path"):
            self.config.ckpt_path = find_checkpoint(str(self.config.ckpt_path), Path(root))
            if self.command == "fit":
                continue_wandb_run(trainer.logger, self.config.ckpt_path)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
            raise UserError(_refused(self.config.trainer, error)) from error
        for folder in output_folders(trainer):
            check_writable(folder)
        return trainer

    @override
    def after_instantiate_classes(self) -> None:
        settings = self.save_config_kwargs["settings"]
        self.model.set_run_info(RunInfo(command=self.shell_command, config=self.parser.dump(settings)))


class _Settings(TrainerCommand):
    """Parses the settings, and builds nothing."""

    @override
    def before_instantiate_classes(self) -> None:
        """Nothing is checked that only a run needs."""

    @override
    def instantiate_classes(self) -> None:
        """Nothing is built."""

    @override
    def after_instantiate_classes(self) -> None:
        """Nothing was built."""


class _Parser(LightningArgumentParser):
    """Reports a mistake in one line, without a dump of all settings."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Taken for an abbreviation, a mistyped name would go unnoticed.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    @override
    def parse_args(self, args: Any = None, *more: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return super().parse_args([_null(argument) for argument in args or []], *more, **kwargs)

    @override
    def dump(self, *args: Any, **kwargs: Any) -> str:
        # Settings were validated when they were parsed; once more, at every level, would take longer than the dump.
        return super().dump(*args, **{**kwargs, "skip_validation": True})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        if (hint := renamed_hint(message)) is not None:
            self.exit(_fail(hint))
        if ex is not None and (text := user_message(ex)) is not None:
            self.exit(_fail(text))
        _fail(_foreign_callbacks(innermost(message)))
        sys.stderr.write(f"`{self.prog} --help` lists the settings; with --model.help GRPOModule, those of a class\n")
        self.exit(2)


def _refused(trainer: Any, error: Exception) -> str:
    """What Lightning says of trainer settings that each are of the right type, and cannot work."""
    kinds = Counter(str(item.class_path) for item in _callbacks(trainer))
    twice = [kind for kind, number in kinds.items() if number > 1]
    if isinstance(error, RuntimeError) and twice:
        hint = f"trainer.callbacks has {' and '.join(twice)} more than once, from several configurations: leave one out"
    else:
        hint = "Check " + ", ".join(f"trainer.{name}={trainer.get(name)}" for name in _MACHINE)
    return f"Lightning refuses the trainer's settings: {' '.join(str(error).split())} {hint}"


def _foreign_callbacks(message: str) -> str:
    """What to do where a class is looked for in vr1's package ``callbacks``, and a module of the user has that name."""
    own = next((path for path in (Path("callbacks.py"), Path("callbacks")) if path.exists()), None)
    if "'callbacks" not in message or own is None or own.resolve() == ROOT / "callbacks":
        return message
    return (
        f"{message}; `callbacks` is the package of vr1, {ROOT / 'callbacks'}, and {own.resolve()} is not read: rename"
        " it to use its classes"
    )


def _null(argument: str) -> str:
    """Write None as YAML does.

    jsonargparse (tried: 4.53) reads the ``null`` of ``--model.policy.quantize null`` and gives it to the parser of the
    class as ``--policy.quantize=None``, which is a text.
    """
    return (
        f"{argument.removesuffix('None')}null" if argument.startswith("--") and argument.endswith("=None") else argument
    )


class _SaveConfig(SaveConfigCallback):
    """Saves the settings of a run with its results, and in Weights & Biases where that is used.

    Args:
        parser: what parsed the settings.
        config: the settings with this run's own folders and numbers, which must not become those of another run.
        settings: the settings as they were given; these are saved.
        kwargs: see Lightning's class.
    """

    def __init__(self, parser: LightningArgumentParser, config: Any, *, settings: Any, **kwargs: Any) -> None:
        super().__init__(parser, settings, **kwargs)

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(flat_settings(self.config.as_dict()))

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if (run := wandb_run_id(trainer.loggers)) is not None:
            checkpoint[WANDB_KEY] = run


def _callbacks(trainer: Any) -> list[Any]:
    """The settings of the trainer's callbacks, of which there may be none, one or several."""
    callbacks = trainer.callbacks or []
    return list(callbacks) if isinstance(callbacks, list) else [callbacks]


def _add_fit_callbacks(trainer: Any) -> None:
    """Add the callbacks that every training has, where the settings have none of the kind."""
    callbacks = _callbacks(trainer)
    names = {str(item.class_path).rsplit(".", 1)[-1] for item in callbacks}
    for class_path, kinds in _FIT_CALLBACKS.items():
        saves = class_path.endswith("Checkpoint")
        if not names.intersection(kinds) and not (saves and trainer.enable_checkpointing is False):
            callbacks.append(Namespace(class_path=class_path, init_args=Namespace()))
    trainer.callbacks = callbacks


def _load_own_callbacks() -> None:
    """Import the package ``callbacks`` of vr1, which a module of that name in the working folder would hide."""
    folder = ROOT / "callbacks"
    loaded = sys.modules.get("callbacks")
    if loaded is not None and loaded.__file__ and Path(loaded.__file__).parent == folder:
        return
    spec = importlib.util.spec_from_file_location(
        "callbacks", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["callbacks"] = module
    spec.loader.exec_module(module)


def _fail(message: str) -> int:
    print(f"vr1: error: {message}", file=sys.stderr)
    return 2
