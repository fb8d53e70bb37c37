"""The command line, ``python -m vr1 COMMAND``: finds the module of a command, and imports no other."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

# Commands without a trainer, each by the module whose `main` it is and what `--help` says of it.
_COMMANDS = {
    "score": ("vr1.commands.score.command", "reward recorded answers, without a model"),
    "check": ("vr1.commands.check.command", "read a whole data set once and draw what the model will see"),
    "plan": ("vr1.commands.plan.command", "predict the memory of a training, without a GPU or weights"),
    "export": ("vr1.commands.export", "make a Hugging Face folder of a checkpoint"),
    "sweep": ("vr1.commands.sweep.command", "run trials over settings"),
    "compare": ("vr1.commands.compare", "show runs side by side"),
    "report": ("vr1.commands.report", "make one page of a run"),
    "doctor": ("vr1.commands.doctor.command", "look at versions, memory and GPUs, and try what a training needs"),
}
_TRAINER = "vr1.commands.trainer"
_TRAINER_COMMANDS = {
    "fit": "train a model, with validation on the way",
    "validate": "measure a model on the validation data",
    "test": "measure a model on the test data",
    "predict": "draw and write down what a model finds in images",
}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run one command.

    Args:
        argv: the words after ``python -m vr1``; None takes the process's own.

    Returns:
        The exit status, where the command has one: 2 for a user's mistake, which is told in one line.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    first = words[0] if words else None
    if first in ("-h", "--help"):
        print(_help(), end="")
        return 0
    if first is None or not (first in _COMMANDS or first in _TRAINER_COMMANDS or first.startswith("-")):
        fault = "no command" if first is None else f"{first} is no command"
        known = ", ".join([*_TRAINER_COMMANDS, *_COMMANDS])
        print(f"vr1: error: {fault}; give one of {known} (`vr1 --help` says what each does)", file=sys.stderr)
        return 2
    # What a command needs takes seconds to import: nobody waits for that of another.
    status: int | None
    if first in _COMMANDS:
        status = import_module(_COMMANDS[first][0]).main(words[1:])
    else:
        status = import_module(_TRAINER).main(argv)
    return status


def _help() -> str:
    """What ``--help`` prints: all commands, and where their settings are listed."""
    parser = argparse.ArgumentParser(
        prog="vr1",
        description="Vision-R1: reinforcement learning that teaches vision-language models to find things in images.",
        epilog="`vr1 COMMAND --help` lists the settings of a command, `vr1 fit --model.help GRPOModule` and `vr1 fit"
        " --data.help SceneDataModule` those of a class. Any setting of a --config file can be set by its path on the"
        " command line, as in `vr1 fit --config configs/demo.yaml --model.sampling.group_size 16`.",
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="settings of several commands, each under its name")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name, does in {**_TRAINER_COMMANDS, **{name: does for name, (_, does) in _COMMANDS.items()}}.items():
        commands.add_parser(name, help=does)
    return parser.format_help()
