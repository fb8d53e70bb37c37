"""The command line, ``python -m vr1 COMMAND``: imports the module of that command, and no other."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from vr1 import __version__

# Commands without a trainer: the module whose `main` it is, and a line for `--help`.
COMMANDS = {
    "show": ("vr1.commands.show.command", "try a model on images, on a page on this machine"),
    "score": ("vr1.commands.score.command", "reward recorded answers, without a model"),
    "check": ("vr1.commands.check.command", "read a whole data set once and draw what the model will see"),
    "plan": ("vr1.commands.plan.command", "predict the memory of a training, without a GPU or weights"),
    "vllm_server": ("vr1.commands.vllm_server", "start a vLLM server for the rollouts of a training"),
    "export": ("vr1.commands.export", "write a checkpoint as a Hugging Face folder"),
    "sweep": ("vr1.commands.sweep.command", "run trials over settings"),
    "compare": ("vr1.commands.compare", "show runs side by side"),
    "report": ("vr1.commands.report", "make one page of a run"),
    "doctor": ("vr1.commands.doctor.command", "check versions, memory and GPUs, and try what a training needs"),
}
_TRAINER = "vr1.commands.trainer"
TRAINER_COMMANDS = {
    "fit": "train a model, with validation on the way",
    "validate": "measure a model on the validation data",
    "test": "measure a model on the test data",
    "predict": "draw a model's predictions on images, and write them to a file",
}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run one command.

    Args:
        argv: the arguments after ``python -m vr1``; None takes those of the process.

    Returns:
        The exit status, where the command has one: 2 for a user's mistake, which is printed in one line.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    command = arguments[0] if arguments else None
    if command in ("-h", "--help"):
        print(_help(), end="")
        return 0
    if command == "--version":
        print(f"vr1 {__version__}")
        return 0
    if command not in COMMANDS and command not in TRAINER_COMMANDS:
        fault = "no command" if command is None else f"{command} is no command"
        known = ", ".join([*TRAINER_COMMANDS, *COMMANDS])
        print(f"vr1: error: {fault}; give one of {known} (`vr1 --help` describes them)", file=sys.stderr)
        return 2
    # What a command needs takes seconds to import, so no command imports that of another.
    status: int | None
    if command in COMMANDS:
        status = import_module(COMMANDS[command][0]).main(arguments[1:])
    else:
        status = import_module(_TRAINER).main(arguments)
    return status


def _help() -> str:
    """The text of ``--help``: all commands, and where their settings are listed."""
    parser = argparse.ArgumentParser(
        prog="vr1",
        description="Vision-R1: reinforcement learning that teaches vision-language models to find things in images.",
        epilog="`vr1 COMMAND --help` lists the settings of a command, `vr1 fit --model.help GRPOModule` and `vr1 fit"
        " --data.help SceneDataModule` those of a class. Any setting of a --config file can be set by its path on the"
        " command line, as in `vr1 fit --config configs/demo.yaml --model.sampling.group_size 16`.",
    )
    parser.add_argument("--version", action="store_true", help="show the version of vr1")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name, does in {**TRAINER_COMMANDS, **{name: does for name, (_, does) in COMMANDS.items()}}.items():
        commands.add_parser(name, help=does)
    return parser.format_help()
