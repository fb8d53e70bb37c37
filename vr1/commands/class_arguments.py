"""``--rewards`` and ``--family`` of commands without a trainer: a file, settings, or a class."""

import contextlib
import inspect
from argparse import ArgumentError
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

import vr1.families
import vr1.rewards
from vr1.errors import UserError, innermost
from vr1.families import Family
from vr1.rewards import Reward


def rewards_and_family(
    arguments: Sequence[str], program: str, default_family: type[Family] | None = None
) -> tuple[Reward, Family | None]:
    """The rewards and the model family that the arguments of a command name.

    Args:
        arguments: ``--rewards`` and ``--family`` with their settings.
        program: name of the command, for its help.
        default_family: the family where the arguments name none.

    Returns:
        The rewards, and the family or None.

    Raises:
        UserError: an argument is not known, names no class, or its class refuses a setting.
    """
    for option, kind, package in (("--family", Family, vr1.families), ("--rewards", Reward, vr1.rewards)):
        _check_class(arguments, option, kind, [getattr(package, name) for name in package.__all__])
    parser = ArgumentParser(allow_abbrev=False, prog=program, exit_on_error=False)
    for name, kind, default in (("rewards", Reward, Reward), ("family", Family, default_family)):
        parser.add_subclass_arguments(kind, name, required=False)
        if default is not None:
            parser.set_defaults({name: {"class_path": f"{default.__module__}.{default.__name__}"}})
    # Lightning's own extra requires a jsonargparse that is older than the new name of this method.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    try:
        objects = instantiate(parser.parse_args(arguments))
    except ArgumentError as error:
        raise UserError(innermost(str(error))) from error
    return objects.rewards, objects.get("family")


def _check_class(arguments: Sequence[str], option: str, kind: type, known: Sequence[Any]) -> None:
    """Refuse a value that is neither a file nor settings nor a class, with the names of the known classes."""
    for argument, after in pairwise([*arguments, ""]):
        given, _, value = argument.partition("=")
        value = value or after
        if given != option:
            continue
        if Path(value).is_file() or value.startswith("{"):
            continue
        module, _, name = value.rpartition(".")
        classes = {cls.__name__: cls for cls in known if inspect.isclass(cls) and issubclass(cls, kind)}
        found = classes.get(value)
        if module:
            with contextlib.suppress(ImportError, ValueError):
                found = getattr(import_module(module), name, None)
        if not (inspect.isclass(found) and issubclass(found, kind)):
            names = ", ".join(name for name, cls in classes.items() if not inspect.isabstract(cls))
            raise UserError(
                f"{option} {value} is neither a file nor a class; give one of {names}, or a class of your own as"
                " module.Class"
            )
