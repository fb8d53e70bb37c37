"""``--model PATH`` for a model that is a folder, a hub name or a checkpoint of a run, where else a class is named."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from vr1.checkpoints.files import read_checkpoint
from vr1.checkpoints.state import source_of
from vr1.errors import UserError


def with_model(words: Sequence[str]) -> list[str]:
    """The words of a command with every ``--model PATH`` replaced by the settings that it stands for.

    A folder or hub name becomes ``--model.policy.path``. A checkpoint (``.ckpt``) becomes the policy's settings of the
    run that it comes from, adapters and resolution included, and the ``--ckpt_path`` to load the weights from. What
    names a class (``GRPOModule``) or a file of settings stays as it is.

    Raises:
        UserError: a checkpoint that cannot be read, or one to train from anew.

    Example:
        >>> with_model(["test", "--model", "Qwen/Qwen2.5-VL-3B-Instruct"])
        ['test', '--model.policy.path', 'Qwen/Qwen2.5-VL-3B-Instruct']
        >>> with_model(["fit", "--model=SFTModule"])
        ['fit', '--model=SFTModule']
    """
    replaced: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        value = word.removeprefix("--model=")
        if word == "--model" and waiting:
            value = waiting[0]
        elif value == word:
            replaced.append(word)
            continue
        if not _is_model(value):
            replaced.append(word)
            continue
        if word == "--model":
            waiting.pop(0)
        replaced += _checkpoint(value, words) if value.endswith(".ckpt") else ["--model.policy.path", value]
    return replaced


def _is_model(value: str) -> bool:
    if value.endswith((".yaml", ".yml", ".json")) or value.startswith(("{", "-")):
        return False
    return "/" in value or value.endswith(".ckpt") or (Path(value) / "config.json").is_file()


def _checkpoint(path: str, words: Sequence[str]) -> list[str]:
    if "fit" in words[:1]:
        raise UserError(
            f"--model {path}: training goes on from a checkpoint by --ckpt_path with the configuration of its run; to"
            " train anew from its weights, make a model of it by `python -m vr1 export`"
        )
    settings = asdict(source_of(read_checkpoint(path)))
    return ["--model.policy", json.dumps(settings), "--ckpt_path", path]
