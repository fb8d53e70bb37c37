"""``--model PATH``, a folder, a hub name or a checkpoint of a run in the place of a class; names of optimizers."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import torch.optim

from vr1.checkpoints.files import read_checkpoint
from vr1.checkpoints.state import source_of
from vr1.errors import UserError

_OPTIMIZER = {f"--model.{part}optimizer{path}" for part in ("", "init_args.") for path in ("", ".class_path")}


def with_torch_optimizer(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command with ``torch.optim.`` before the plain name of an optimizer of torch.

    Once bitsandbytes is imported, as by the settings of a ``--config`` before, there are two classes of such a name.

    Args:
        arguments: the arguments after the command.

    Example:
        >>> with_torch_optimizer(["--model.optimizer", "AdamW", "--model.optimizer.lr", "1e-5"])
        ['--model.optimizer', 'torch.optim.AdamW', '--model.optimizer.lr', '1e-5']
        >>> with_torch_optimizer(["--model.optimizer=bitsandbytes.optim.AdamW"])
        ['--model.optimizer=bitsandbytes.optim.AdamW']
    """
    replaced = []
    for before, argument in pairwise(["", *arguments]):
        option, equals, value = argument.partition("=")
        if not equals:
            option, value = before, argument
        plain = option in _OPTIMIZER and value in torch.optim.__all__
        replaced.append(f"{option + equals if equals else ''}torch.optim.{value}" if plain else argument)
    return replaced


def with_model(command: str, arguments: Sequence[str]) -> list[str]:
    """The arguments of a command with every ``--model PATH`` replaced by the settings that it stands for.

    A folder or hub name becomes ``--model.policy.path``. A checkpoint (``.ckpt``) becomes the policy's settings of the
    run that it comes from, adapters and resolution included, and the ``--ckpt_path`` to load the weights from. What
    names a class (``GRPOModule``) or a file of settings stays as it is.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        arguments: the arguments after it.

    Raises:
        UserError: a checkpoint that cannot be read, or a checkpoint given to ``fit``.

    Example:
        >>> with_model("test", ["--model", "Qwen/Qwen2.5-VL-3B-Instruct"])
        ['--model.policy.path', 'Qwen/Qwen2.5-VL-3B-Instruct']
        >>> with_model("fit", ["--model=SFTModule"])
        ['--model=SFTModule']
    """
    replaced: list[str] = []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        value = argument.removeprefix("--model=")
        if argument == "--model" and remaining:
            value = remaining[0]
        elif value == argument:
            replaced.append(argument)
            continue
        if not _is_model(value):
            replaced.append(argument)
            continue
        if argument == "--model":
            remaining.pop(0)
        replaced += _checkpoint(command, value) if value.endswith(".ckpt") else ["--model.policy.path", value]
    return replaced


def _is_model(value: str) -> bool:
    if value.endswith((".yaml", ".yml", ".json")) or value.startswith(("{", "-")):
        return False
    return "/" in value or value.endswith(".ckpt") or (Path(value) / "config.json").is_file()


def _checkpoint(command: str, path: str) -> list[str]:
    if command == "fit":
        raise UserError(
            f"--model {path}: to resume a training, give its checkpoint as --ckpt_path with the configuration of its"
            " run; to start a new training from its weights, export it by `python -m vr1 export` and give that folder"
        )
    settings = asdict(source_of(read_checkpoint(path)))
    return ["--model.policy", json.dumps(settings), "--ckpt_path", path]
