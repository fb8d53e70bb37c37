"""A trained model as a folder that transformers and peft load by ``from_pretrained``."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForImageTextToText

from vr1.checkpoints.state import source_of
from vr1.distributed import is_first
from vr1.errors import UserError
from vr1.policy.loading import PolicySource
from vr1.policy.patches import four_bit_layers

_PREFIX = "policy.network."


def write_model(
    network: Any,
    processor: Any,
    folder: Path,
    dtype: str | None = None,
    card: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model, or the adapters of one, with its processor and chat template.

    Args:
        network: a transformers model, or a peft model, of which the adapters alone are written.
        processor: the processor that it was trained with.
        folder: created if it is missing; files of the same names are replaced.
        dtype: precision of the written weights, a name of torch's; None keeps that of ``network``.
        card: text of ``README.md``; None leaves what peft writes.
        weights: what to write, by name; None takes the weights of ``network``.
    """
    weights = network.state_dict() if weights is None else weights
    if dtype is not None:
        kind = getattr(torch, dtype)
        weights = {name: value.to(kind) if value.is_floating_point() else value for name, value in weights.items()}
    network.save_pretrained(folder, state_dict=weights)
    if dtype is not None and not isinstance(network, PeftModel):
        _write_precision(network.config, dtype, folder)
    processor.save_pretrained(folder)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")


def gathered_weights(network: Any, dtype: str | None = None) -> dict[str, Tensor]:
    """The weights that `write_model` writes of a sharded model; to be called by all processes.

    One tensor is gathered at a time, so that no device has to hold more than the largest one beside its shards.

    Args:
        network: a transformers model, or a peft model, of which the adapters alone are gathered.
        dtype: precision of the result, a name of torch's; None keeps that of ``network``.

    Returns:
        In the first process the weights by name, on the CPU, tied ones as one tensor; in the others nothing.
    """
    first = is_first()
    # A tied weight has several names, and is one parameter.
    parameters = dict(network.named_parameters(remove_duplicate=False))
    gathered: dict[int, Tensor] = {}
    weights = {}
    for name, stored in network.state_dict().items():
        if isinstance(network, PeftModel) and "lora_" not in name:
            continue
        key = id(parameters.get(name, stored))
        if key not in gathered:
            value = stored.detach()
            if dtype is not None and value.is_floating_point():
                value = value.to(getattr(torch, dtype))
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            gathered[key] = whole.cpu() if first else torch.empty(0)
        weights[name] = gathered[key]
    return weights if first else {}


def package_of(network: Any) -> str:
    """The package that registers the class of a model with transformers; empty for a class of transformers.

    Args:
        network: a model, or a peft model around one.
    """
    base = network.get_base_model() if isinstance(network, PeftModel) else network
    module = type(base).__module__
    return "" if module.startswith("transformers.") else module.rpartition(".")[0]


def trained_network(checkpoint: dict[str, Any], merge: bool = False, dtype: str | None = None) -> Any:
    """The model of a checkpoint.

    Args:
        checkpoint: a checkpoint of a run of vr1.
        merge: add the adapters, if there are any, to the weights of the base. For a run in 4 bits these are the
            dequantized 4-bit weights that the adapters were trained on, so that the answers are those of the policy.
        dtype: precision of the model, a name of torch's; None takes that of the run.

    Returns:
        A transformers model; for a run with adapters that are not merged, a peft model whose base has no weights.

    Raises:
        UserError: vr1 did not write the checkpoint, or its weights do not belong to the base that it names.
    """
    source = source_of(checkpoint)
    prefix = len(_PREFIX)
    weights = {name[prefix:]: value for name, value in checkpoint["state_dict"].items() if name.startswith(_PREFIX)}
    if source.lora is None:
        network = _load_base(source, dtype)
        _load_weights(network, weights, source)
        return network
    if not merge:
        return _adapters_only(source, weights)
    network = _load_base(source, dtype)
    if source.quantize:
        network.load_state_dict(_dequantized_base(source), strict=False)
    network = get_peft_model(network, source.lora_config())
    _load_weights(network, weights, source)
    return network.merge_and_unload()


def _load_base(source: PolicySource, dtype: str | None) -> Any:
    return AutoModelForImageTextToText.from_pretrained(
        source.path, dtype=getattr(torch, dtype or source.dtype), use_safetensors=True
    )


def _adapters_only(source: PolicySource, weights: dict[str, Tensor]) -> Any:
    """A peft model in which only the adapters have weights, since only they are written."""
    config = source.config()
    with torch.device("meta"):
        network = get_peft_model(AutoModelForImageTextToText.from_config(config), source.lora_config())
    _load_weights(network, weights, source, assign=True)
    return network


def _dequantized_base(source: PolicySource) -> dict[str, Tensor]:
    """The weights of the 4-bit layers in ``dtype``, by their names in the model without adapters."""
    from bitsandbytes.functional import dequantize_4bit

    network = source.load().network.unload()
    return {
        f"{name}.weight": dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        for name, layer in four_bit_layers(network).items()
    }


def _load_weights(network: Any, weights: dict[str, Tensor], source: PolicySource, assign: bool = False) -> None:
    """Load trained weights, all of which must belong to the model; with adapters, the rest comes from the base."""
    try:
        missing, unexpected = network.load_state_dict(weights, strict=False, assign=assign)
    except RuntimeError as error:
        raise UserError(f"the checkpoint does not belong to its base {source.path}: {error}") from error
    missing = [name for name in missing if source.lora is None or "lora_" in name]
    if lost := [*unexpected, *missing]:
        raise UserError(
            f"the checkpoint does not belong to its base {source.path}: {len(lost)} tensors, such as {lost[0]}, are in"
            " one and not in the other; give the base that it was trained from as --base"
        )


def _write_precision(config: Any, dtype: str, folder: Path) -> None:
    """Write a config that names the precision of the written weights, which ``from_pretrained`` uses."""
    written = copy.deepcopy(config)
    for part in (written, *(getattr(written, name) for name in written.sub_configs)):
        part.dtype = dtype
    written.save_pretrained(folder)
