"""A policy whose weights stay in their files until a strategy takes this process's part of each.

A process that shards a model needs only its own part of every weight. Here the policy gets parameters without content
(device "meta"), and its weights are tensors of the mapped files: the operating system reads the rows that are used, and
all processes of a machine share what it has read. Names in the files, weights that a model joins or splits and values
that are not in the files (rotary frequencies) are transformers' matter: it reads the files as ever, once in their own
precision for the weights, and once with every weight replaced by one number for the model around them.

For a 7B in bfloat16 on eight processes, the files are 17 GB in memory once, which the system may drop and read again. A
full model in float32 on each process, and one more for the reference, are 530 GB.
"""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from lightning.pytorch.utilities import rank_zero_warn
from safetensors import safe_open
from torch import Tensor, nn

from vr1.policy.loading import PolicySource
from vr1.policy.policy import Policy

__all__ = ["load_mapped", "own_bytes"]

_ONE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Weights that a model joins or splits while it reads its files are copies; a few of them do no harm.
_MAX_COPIED = 0.1


def load_mapped(source: PolicySource) -> tuple[Policy, dict[str, Tensor]]:
    """Make a policy without weights, and its weights apart.

    With the weights it is what ``source.load()`` returns for the same state of the random generators: adapters begin
    with the same values. Weights are in the precision of the files; a parameter without content has the precision that
    its weight is to be converted to.

    A warning of one line says when the weights cannot be mapped: each process then has all of them in its memory.

    Args:
        source: which model; not in 4 bits, which cannot be sharded.

    Returns:
        The policy, with parameters on the device "meta" and buffers on the CPU; and the weight of each parameter by its
        name, tied ones under each of their names.

    Raises:
        UserError: as `PolicySource.load`.

    Example:
        >>> policy, weights = load_mapped(PolicySource())
        >>> {parameter.device.type for parameter in policy.parameters()}
        {'meta'}
        >>> weights["network.lm_head.weight"].dtype, policy.network.lm_head.weight.dtype
        (torch.bfloat16, torch.float32)
    """
    assert source.quantize is None, "4-bit weights cannot be sharded"
    read, network = _read(source)
    full = {parameter: read[name] for name, parameter in network.named_parameters()}
    policy = source.wrap(network)
    named = dict(policy.named_parameters(remove_duplicate=False))
    # What is not in the files are adapters.
    weights = {name: full.get(parameter, parameter.data) for name, parameter in named.items()}
    for parameter in set(named.values()):
        empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        # Keeps the identity of tied weights.
        torch.utils.swap_tensors(parameter, nn.Parameter(empty, requires_grad=parameter.requires_grad))
    return policy, weights


def own_bytes(weights: dict[str, Tensor]) -> int:
    """Bytes of tensors in memory of this process's own, rather than in mapped files; each memory counts once.

    Example:
        >>> own_bytes({"a": torch.zeros(2, 5), "b": torch.zeros(1)})
        44
    """
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in weights.values()}
    # torch cannot resize memory that it did not allocate.
    return sum(storage.nbytes() for storage in storages.values() if storage.resizable())


def _read(source: PolicySource) -> tuple[dict[str, Tensor], Any]:
    """The weights of a model of transformers by name, and the model, whose own are in the precision of the settings."""
    files = _files(source)
    dtypes = {_DTYPES[kind] for file in files for kind, _ in _header(file).values() if kind in _DTYPES}
    if len(dtypes) == 1:
        [dtype] = dtypes
        # Whatever is drawn is drawn for the model that is kept.
        with torch.random.fork_rng(devices=[]):
            network = source.load_network(dtype)
        read = {name: parameter.data for name, parameter in network.named_parameters()}
        copied = own_bytes(read) / sum(value.nbytes for value in read.values())
        if copied <= _MAX_COPIED:
            return read, _around(network, source, files)
        reason = f"{copied:.0%} of its weights are converted while they are read"
    else:
        reason = f"its files hold weights of several types ({', '.join(sorted(map(str, dtypes))) or 'unknown'})"
    rank_zero_warn(f"policy.path={source.path}: {reason}; each process reads the full model before it is sharded")
    network = source.load_network()
    return {name: parameter.data for name, parameter in network.named_parameters()}, network


def _around(network: Any, source: PolicySource, files: list[Path]) -> Any:
    """The same model as transformers makes it in the precision of the settings, with one number for every weight.

    Precision decides more than weights: some models keep a few of them in float32, or have values that are computed in
    the precision of the rest.
    """
    state: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name, (kind, shape) in _header(file).items():
                # One number that is seen in every place needs no memory.
                number = torch.zeros((), dtype=getattr(torch, source.dtype)).expand(shape)
                state[name] = number if kind in _DTYPES else opened.get_tensor(name)
    made = type(network).from_pretrained(
        None,
        config=source.config(),
        state_dict=state,
        generation_config=network.generation_config,
        dtype=getattr(torch, source.dtype),
        attn_implementation="sdpa",
    )
    made.name_or_path = made.config.name_or_path = network.name_or_path
    in_files = network.state_dict()
    for name, buffer in made.named_buffers():
        if name in in_files:
            buffer.data = in_files[name].to(buffer.dtype, copy=True)
    return made


def _files(source: PolicySource) -> list[Path]:
    """The files with the weights of a model, downloaded if need be: one, or those that an index names."""
    folder = Path(source.path)
    if not folder.is_dir():
        folder = Path(snapshot_download(source.path, allow_patterns=[_ONE_FILE, _INDEX, "model-*.safetensors"]))
    if (folder / _ONE_FILE).is_file() or not (folder / _INDEX).is_file():
        return [file for file in (folder / _ONE_FILE,) if file.is_file()]
    return [folder / name for name in sorted(set(json.loads((folder / _INDEX).read_text())["weight_map"].values()))]


def _header(file: Path) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of each tensor in a file."""
    with safe_open(file, framework="pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - not iterable
        return {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
