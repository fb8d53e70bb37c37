"""Checkpoints in shards: a folder in which each process writes its own tensors, read without running code from it.

A private part of torch that this file allows by name when it unpickles, tried with 2.15: ``_get_layout``.
"""

import pickle
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, load, save
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from typing_extensions import override

from vr1.checkpoints.files import AtomicCheckpointIO, read_checkpoint
from vr1.distributed import is_first
from vr1.errors import UserError

# The file in the folder with everything except the tensors of weights and optimizer.
REST = "rest.ckpt"


def write_shards(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint as a folder, atomically; to be called by all processes.

    The folder is renamed when all of it is on the disk. A process killed in between leaves the earlier one, at worst as
    ``.NAME.old``.

    Args:
        checkpoint: Lightning's, with this process's shards; changed in place.
        path: the folder, on a file system that all processes share.
    """
    first, part, old = is_first(), path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.old")
    if first:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    _barrier()
    tensors = dict(_take_tensors(checkpoint))
    save(tensors, checkpoint_id=part)
    if first:
        AtomicCheckpointIO().save_checkpoint(checkpoint, part / REST)
        shutil.rmtree(old, ignore_errors=True)
        if path.is_dir():
            path.rename(old)
        else:
            path.unlink(missing_ok=True)
        part.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    _barrier()


def read_shards(path: Path, like: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """Read a folder that `write_shards` wrote.

    Args:
        path: the folder.
        like: sharded parameters by the keys that `write_shards` gives their weights (``state_dict.NAME``) and their
            optimizer states (``optimizer_states.INDEX.NUMBER``). Tensors of the same shape are read as this process's
            shards, on the parameter's device; all others in full, on the CPU.

    Returns:
        The checkpoint as a single file would contain it.

    Raises:
        UserError: it is no such folder, it is damaged, or it contains more than tensors and plain values.
    """
    if not (path / REST).is_file():
        raise UserError(
            f"checkpoint {path} is a folder without {REST}: no checkpoint of vr1, or incomplete; give another one"
        )
    checkpoint, reader = read_checkpoint(path / REST), _Reader(path)
    tensors: dict[str, Any] = {}
    try:
        for key, stored in reader.read_metadata().state_dict_metadata.items():
            if not isinstance(stored, TensorStorageMetadata):
                raise pickle.UnpicklingError(f"{key} is no tensor")
            tensors[key] = _empty(stored, _parameter_of(key, like or {}))
        load(tensors, storage_reader=reader, planner=_Planner(), no_dist=not torch.distributed.is_initialized())
    except (pickle.UnpicklingError, EOFError, OSError, RuntimeError, KeyError, CheckpointException) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"checkpoint {path} is damaged, or contains more than tensors ({why}); give another one"
        ) from error
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        if part == "state_dict":
            checkpoint[part][name] = value
        else:
            index, number, name = name.split(".", 2)
            checkpoint[part][int(index)]["state"].setdefault(int(number), {})[name] = value
    return checkpoint


def _take_tensors(checkpoint: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Remove the tensors of weights and optimizer states from a checkpoint, with keys that name their place."""
    for name, value in checkpoint["state_dict"].items():
        yield f"state_dict.{name}", value
    checkpoint["state_dict"] = {}
    states = []
    for index, state in enumerate(checkpoint.get("optimizer_states", [])):
        rest: dict[int, dict[str, Any]] = {number: {} for number in state["state"]}
        for number, values in state["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    yield f"optimizer_states.{index}.{number}.{name}", value
                else:
                    rest[number][name] = value
        states.append({**state, "state": rest})
    if states:
        checkpoint["optimizer_states"] = states


def _parameter_of(key: str, like: Mapping[str, Tensor]) -> Tensor | None:
    return like.get(key if key.startswith("state_dict.") else key.rpartition(".")[0])


def _empty(stored: TensorStorageMetadata, like: Tensor | None) -> Tensor:
    """An empty tensor to read into."""
    dtype = stored.properties.dtype
    if like is None or like.shape != stored.size:
        return torch.empty(stored.size, dtype=dtype)
    return torch.empty_like(like, dtype=dtype, requires_grad=False)


class _Planner(DefaultLoadPlanner):
    """Reads tensors only: everything else would be unpickled."""

    @override
    def load_bytes(self, read_item: Any, value: Any) -> None:
        raise pickle.UnpicklingError("it contains pickled objects")


class _Reader(FileSystemReader):
    """Reads the table of contents, a pickle, which may name torch's own dataclasses only."""

    @override
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError("its .metadata is no table of contents")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    @override
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        package = module_name.partition(".")[0]
        named = super().find_class(module_name, global_name) if package in ("torch", "pathlib") else None
        record = module_name.startswith("torch.distributed.checkpoint.") and is_dataclass(named)
        plain = isinstance(named, torch.dtype) or (isinstance(named, type) and issubclass(named, (Enum, PurePath)))
        allowed = (module_name, global_name) in (("torch", "Size"), ("torch.serialization", "_get_layout"))
        if not (record or plain or allowed):
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")
        return named


def _barrier() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
