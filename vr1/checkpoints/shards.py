"""Checkpoints in shards: a folder in which each process has put its own tensors, read without running code from it."""

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
from vr1.errors import UserError

# The file in the folder that has all of a checkpoint but the tensors of weights and optimizer.
REST = "rest.ckpt"


def write_shards(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint as a folder; to be called on all processes.

    It takes its place when all of it is on the disk. A kill between leaves the earlier one, at worst as ``.NAME.old``.

    Args:
        checkpoint: Lightning's, with this process's shards in it; changed in place.
        path: the folder, which all processes see.
    """
    first, part, old = _rank() == 0, path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.old")
    if first:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    _wait()
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
    _wait()


def read_shards(path: Path, laid_out: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """Read a folder that `write_shards` wrote.

    Args:
        path: the folder.
        laid_out: parameters by the keys under which `write_shards` puts their weights (``state_dict.NAME``) and their
            optimizer states (``optimizer_states.PLACE.NUMBER``). Tensors as large as these are read as this process's
            shards, on the parameter's device; without them whole, on the CPU.

    Returns:
        The checkpoint as one file would hold it.

    Raises:
        UserError: it is no such folder, it is damaged, or it holds more than tensors and plain values.
    """
    if not (path / REST).is_file():
        raise UserError(f"checkpoint {path} is a folder without {REST}: no checkpoint of vr1, or one cut short")
    checkpoint, reader = read_checkpoint(path / REST), _Reader(path)
    tensors: dict[str, Any] = {}
    try:
        for key, stored in reader.read_metadata().state_dict_metadata.items():
            if not isinstance(stored, TensorStorageMetadata):
                raise pickle.UnpicklingError(f"{key} is no tensor")
            tensors[key] = _empty(stored, _layout_of(key, laid_out or {}))
        load(tensors, storage_reader=reader, planner=_Planner(), no_dist=not torch.distributed.is_initialized())
    except (pickle.UnpicklingError, EOFError, OSError, RuntimeError, KeyError, CheckpointException) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"checkpoint {path} is damaged, or holds more than tensors ({why})") from error
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        if part == "state_dict":
            checkpoint[part][name] = value
        else:
            place, number, name = name.split(".", 2)
            checkpoint[part][int(place)]["state"].setdefault(int(number), {})[name] = value
    return checkpoint


def _take_tensors(checkpoint: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Take the tensors of weights and optimizer states out of a checkpoint, by keys that say where they were."""
    for name, value in checkpoint["state_dict"].items():
        yield f"state_dict.{name}", value
    checkpoint["state_dict"] = {}
    states = []
    for place, state in enumerate(checkpoint.get("optimizer_states", [])):
        rest: dict[int, dict[str, Any]] = {number: {} for number in state["state"]}
        for number, values in state["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    yield f"optimizer_states.{place}.{number}.{name}", value
                else:
                    rest[number][name] = value
        states.append({**state, "state": rest})
    if states:
        checkpoint["optimizer_states"] = states


def _layout_of(key: str, laid_out: Mapping[str, Tensor]) -> Tensor | None:
    return laid_out.get(key if key.startswith("state_dict.") else key.rpartition(".")[0])


def _empty(stored: TensorStorageMetadata, like: Tensor | None) -> Tensor:
    """A tensor to read into."""
    dtype = stored.properties.dtype
    if like is None or like.shape != stored.size:
        return torch.empty(stored.size, dtype=dtype)
    return torch.empty_like(like, dtype=dtype, requires_grad=False)


class _Planner(DefaultLoadPlanner):
    """Reads tensors alone: everything else would be unpickled."""

    @override
    def load_bytes(self, read_item: Any, value: Any) -> None:
        raise pickle.UnpicklingError("it asks for objects to be unpickled")


class _Reader(FileSystemReader):
    """Reads the table of contents, a pickle, without calling anything that it names but torch's own records."""

    @override
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError("its .metadata is none")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    @override
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        package = module_name.partition(".")[0]
        found = super().find_class(module_name, global_name) if package in ("torch", "pathlib") else None
        record = module_name.startswith("torch.distributed.checkpoint.") and is_dataclass(found)
        plain = isinstance(found, torch.dtype) or (isinstance(found, type) and issubclass(found, (Enum, PurePath)))
        known = (module_name, global_name) in (("torch", "Size"), ("torch.serialization", "_get_layout"))
        if not (record or plain or known):
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")
        return found


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _wait() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
