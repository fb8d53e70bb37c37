"""What the machine has: cores, memory, disk, GPUs."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from vr1.doctor.observation import Observation

_GIB = 2**30
# A batch of decoded images crosses from a worker in shared memory.
_LEAST_SHARED = _GIB
_LEAST_DISK = 10 * _GIB
# Where the kernel tells of NVIDIA's driver, whatever torch was built for.
_DRIVER = Path("/proc/driver/nvidia/version")


def observe_machine() -> list[Observation]:
    """Cores, memory, disk and GPUs."""
    return [_cores(), _memory(), *_shared_memory(Path("/dev/shm")), _disk(Path.cwd()), *_gpus()]


def _cores() -> Observation:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    told = f"{cores} cores, {threads} threads a process"
    if threads > cores:
        return Observation(what="CPU", told=told, state="fault", mend=f"set OMP_NUM_THREADS to {cores} or less")
    return Observation(what="CPU", told=told)


def _memory() -> Observation:
    memory = psutil.virtual_memory()
    told = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free"
    if memory.available < 4 * _GIB:
        return Observation(what="memory", told=told, state="note", mend="importing everything takes 1, the demo 2 GiB")
    return Observation(what="memory", told=told)


def _shared_memory(folder: Path) -> Iterator[Observation]:
    """What worker processes hand their batches over in, where there is such a folder."""
    if not folder.is_dir():
        return
    free = shutil.disk_usage(folder).free
    told = f"{free / _GIB:.1f} GiB free in {folder}"
    if free < _LEAST_SHARED:
        mend = "workers may end with a bus error: start the container with --shm-size 8g, or set --data.num_workers 0"
        yield Observation(what="shared memory", told=told, state="note", mend=mend)
    else:
        yield Observation(what="shared memory", told=told)


def _disk(folder: Path) -> Observation:
    free = shutil.disk_usage(folder).free
    told = f"{free / _GIB:.1f} GiB free in {folder}"
    if free < _LEAST_DISK:
        mend = "a whole checkpoint of a 7B takes 15 GiB and its optimizer twice that; adapters take megabytes"
        return Observation(what="disk", told=told, state="note", mend=mend)
    return Observation(what="disk", told=told)


def _gpus() -> Iterator[Observation]:
    built = torch.version.cuda or getattr(torch.version, "hip", None)
    if not torch.cuda.is_available():
        if _DRIVER.is_file() and not built:
            told = "a driver is there, but torch is built without CUDA"
            yield Observation(what="GPU", told=told, state="fault", mend="install a CUDA build of torch")
        elif _DRIVER.is_file():
            told = f"a driver is there, but torch for CUDA {built} cannot use it"
            mend = "update the driver, or install torch for an older CUDA; see also CUDA_VISIBLE_DEVICES"
            yield Observation(what="GPU", told=told, state="fault", mend=mend)
        else:
            yield Observation(what="GPU", told="none; the embedded model trains without one")
        return
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        told = f"{properties.name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free, CUDA {built}"
        state, mend = "ok", ""
        if (properties.major, properties.minor) < (8, 0):
            state, mend = "note", "no bfloat16 in hardware: set --model.policy.dtype float16 or float32"
        elif free < total / 2:
            state, mend = "note", "another process holds the rest, see nvidia-smi"
        yield Observation(what=f"GPU {number}", told=told, state=state, mend=mend)  # type: ignore[arg-type]
