"""A trained model by the name that a user gives: a run, a checkpoint, a folder of weights or adapters, a hub name."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file

from vr1.checkpoints.files import read_checkpoint
from vr1.checkpoints.shards import read_shards
from vr1.checkpoints.state import check_weights, source_of
from vr1.errors import UserError
from vr1.policy.loading import PolicySource
from vr1.policy.policy import Policy

_PREFIX = "policy."
# What peft writes next to the adapters.
_ADAPTERS = "adapter_config.json"


Dtype = Literal["float32", "bfloat16", "float16"]


def load_trained(
    path: str, dtype: Dtype | None = None, max_pixels: int | None = None, default_dtype: Dtype = "float32"
) -> tuple[PolicySource, Policy]:
    """Load a policy with its trained weights.

    Args:
        path: the folder of a run (its newest checkpoint, else its ``model``), a checkpoint, a folder that
            ``save_pretrained`` wrote, of a full model or of adapters, or the name of a model on the hub.
        dtype: precision of the weights; None takes that of the run of a checkpoint, and ``default_dtype`` for others.
        max_pixels: largest model input in pixels; None takes that of the run, or the processor's own.
        default_dtype: precision of the weights of what is no checkpoint.

    Returns:
        Where the policy comes from, and the policy, on the CPU.

    Raises:
        UserError: there is no model, or its files do not belong together.

    Example:
        >>> from vr1.policy.loading import EMBEDDED_MODEL
        >>> source, policy = load_trained(EMBEDDED_MODEL)
        >>> sum(parameter.numel() for parameter in policy.parameters()) // 1_000_000
        4
    """
    found = newest_model(path)
    given: dict[str, Any] = {"dtype": dtype, "max_pixels": max_pixels}
    changes = {name: value for name, value in given.items() if value is not None}
    if found.endswith(".ckpt"):
        checkpoint = read_shards(Path(found)) if Path(found).is_dir() else read_checkpoint(found)
        source = replace(source_of(checkpoint), **changes)
        source.check()
        policy = source.load()
        check_weights(checkpoint, policy, source)
        weights = checkpoint["state_dict"]
        own = {name.removeprefix(_PREFIX): value for name, value in weights.items() if name.startswith(_PREFIX)}
        policy.load_state_dict(own, strict=False)
        return source, policy
    changes.setdefault("dtype", default_dtype)
    if (Path(found) / _ADAPTERS).is_file():
        return _with_adapters(Path(found), changes)
    source = PolicySource(path=found, **changes)
    source.check()
    return source, source.load()


def newest_model(path: str) -> str:
    """What to load: the newest checkpoint or the ``model`` of a run, else the path itself.

    Args:
        path: any path or hub name; of a folder with ``version_N`` in it, the run with the highest N counts.

    Raises:
        UserError: the folder of a run with neither a checkpoint nor a model.
    """
    folder = Path(path)
    versions = [(int(run.name[8:]), run) for run in folder.glob("version_*") if run.name[8:].isdecimal()]
    if versions:
        folder = max(versions)[1]
    checkpoints = sorted((folder / "checkpoints").glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
    if checkpoints:
        return str(checkpoints[-1])
    for model in (folder, folder / "model"):
        if (model / "config.json").is_file() or (model / _ADAPTERS).is_file():
            return str(model)
    if (folder / "run.json").is_file():
        raise UserError(
            f"{folder} is the folder of a run that has neither a checkpoint nor a model; add callbacks.Export to the"
            " training, or give another run"
        )
    return path


def _with_adapters(folder: Path, changes: dict[str, Any]) -> tuple[PolicySource, Policy]:
    """The base model that adapters name, with the adapters."""
    config = PeftConfig.from_pretrained(str(folder))
    if not config.base_model_name_or_path:
        raise UserError(f"{folder}: its {_ADAPTERS} names no base model; merge the adapters, and give that folder")
    source = PolicySource(path=config.base_model_name_or_path, **changes)
    source.check()
    network = get_peft_model(source.load_network(), config)
    result: Any = set_peft_model_state_dict(network, load_file(folder / "adapter_model.safetensors"))
    missing = [name for name in result.missing_keys if config.peft_type.value.lower() in name]
    if lost := [*result.unexpected_keys, *missing]:
        raise UserError(
            f"{folder}: {len(lost)} of its tensors, such as {lost[0]}, are in the adapters or in {source.path} and not"
            " in the other; give the adapters of that model"
        )
    return source, Policy(network, source.share_prompt)
