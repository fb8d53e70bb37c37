"""``python -m vr1 export``: a checkpoint as a Hugging Face folder."""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from vr1.errors import UserError, report_user_error

DTYPES = ("float32", "bfloat16", "float16")


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: the arguments after ``python -m vr1 export``.

    Returns:
        The exit status: 0, or 2 after a one-line message for an error that the user can fix.
    """
    settings = _parser().parse_args(argv)
    command = shlex.join(["python", "-m", "vr1", "export", *argv])
    try:
        options = {name: vars(settings)[name] for name in ("ckpt", "out", "merge", "dtype", "base", "released")}
        print(export(**options, command=command))
    except Exception as error:
        return report_user_error("vr1 export", error)
    return 0


def export(
    ckpt: Path, out: Path, merge: bool, dtype: str | None, base: str | None, command: str = "", released: bool = False
) -> str:
    """Write the model of a checkpoint.

    Args:
        ckpt: a checkpoint of a run of vr1, or the folder of a run, whose newest checkpoint is used.
        out: folder to write.
        merge: merge the adapters into the weights of the base.
        dtype: dtype of the written weights; None takes that of the run.
        base: folder or hub name of the base model; None takes the one that the run used.
        command: this command, for the model card.
        released: write Griffon-G under the names of its released weights.

    Returns:
        A one-line summary.

    Raises:
        UserError: the checkpoint, its base or the folder cannot be used.
    """
    # Imported here, so that --help does not wait for torch.
    from vr1.checkpoints.export import package_of, trained_network, write_model
    from vr1.checkpoints.files import read_checkpoint
    from vr1.checkpoints.model_card import model_card
    from vr1.checkpoints.shards import read_shards
    from vr1.checkpoints.state import run_of, source_of
    from vr1.griffon.released_folder import write_released

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not an empty folder; name another one")
    ckpt = _newest(ckpt)
    checkpoint = read_shards(ckpt) if ckpt.is_dir() else read_checkpoint(ckpt)
    source = source_of(checkpoint)
    if base is not None:
        source = replace(source, path=base)
    source.check()
    if merge and source.lora is None:
        raise UserError("--merge: this run trained all weights, so there are no adapters to merge; leave --merge out")
    adapters = source.lora is not None and not merge
    if released and adapters:
        raise UserError("--released writes a full model, and this run trained adapters; add --merge")
    # Checkpoints of version 0.1.0 do not store the prompt.
    run = {"prompt": source.family().prompt_info()} if "prompt" not in run_of(checkpoint) else {}
    run_of(checkpoint).update(run, policy=asdict(source))
    network = trained_network(checkpoint, merge, dtype)
    card = model_card(run_of(checkpoint), checkpoint["global_step"], adapters, command, package_of(network))
    if released:
        write_released(network, source.processor(), out, source.path)
        (out / "README.md").write_text(card, encoding="utf-8")
    else:
        write_model(network, source.processor(), out, dtype, card)
    what = f"adapters for {source.path}" if adapters else "a full model"
    return f"{out}: {what} after {checkpoint['global_step']} steps, with processor and model card"


def _newest(path: Path) -> Path:
    """The newest checkpoint if the path is the folder of a run, else the path."""
    checkpoints = sorted((path / "checkpoints").glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
    if checkpoints:
        return checkpoints[-1]
    if (path / "run.json").is_file():
        raise UserError(
            f"--ckpt {path} is the folder of a run that has no checkpoint; its model may be in {path}/model"
        )
    others = sorted(file.name for file in path.parent.glob("*.ckpt"))
    if not path.exists() and others:
        raise UserError(f"--ckpt {path} does not exist; in its folder are {', '.join(others)}")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vr1 export",
        allow_abbrev=False,
        description="Write the model of a checkpoint as a folder that transformers and peft load by from_pretrained.",
    )
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint of a run (.ckpt), or its folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; new or empty")
    parser.add_argument("--merge", action="store_true", help="write one full model instead of adapters")
    parser.add_argument(
        "--released", action="store_true", help="Griffon-G only: write the names and files of its released weights"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the written weights; default: that of the run")
    parser.add_argument("--base", help="folder or hub name of the base model; default: the one that the run used")
    return parser
