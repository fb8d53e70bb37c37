"""What ``vr1 doctor`` checks: installed versions, the machine, and what a training calls, tried for real."""

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
import torch
from packaging.requirements import Requirement


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What was found of one thing.

    Attributes:
        what: the thing.
        told: what was found.
        state: ``fault`` where a training cannot work or will not end well, ``note`` where it could do better.
        mend: what to do about it; empty where all is well.

    Example:
        >>> print(Observation(what="disk", told="3 GiB free", state="note", mend="a 7B checkpoint takes 15 GiB"))
        note   disk: 3 GiB free; a 7B checkpoint takes 15 GiB
    """

    what: str
    told: str
    state: Literal["ok", "note", "fault"] = "ok"
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.state:6} {self.what}: {self.told}{f'; {self.mend}' if self.mend else ''}"


def observe_packages(distribution: str = "vr1") -> list[Observation]:
    """Python and every package that a distribution requires.

    Args:
        distribution: name of the installed distribution whose requirements count.

    Example:
        >>> observe_packages("no such distribution")[1].state
        'fault'
    """
    found = [Observation(what="Python", told=f"{platform.python_version()}, {sys.executable}")]
    try:
        asked = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        mend = "run `pip install -e . -c constraints.txt` in its folder"
        return [*found, Observation(what=distribution, told="not installed", state="fault", mend=mend)]
    found.append(Observation(what=distribution, told=metadata.version(distribution)))
    return found + [observe_requirement(line) for line in asked if "extra ==" not in line]


def observe_requirement(line: str) -> Observation:
    """One requirement as packages write it.

    Example:
        >>> observe_requirement("packaging>=9999").told.split(" (")[1]
        'asked: >=9999)'
    """
    requirement = Requirement(line)
    mend = f"run `pip install '{requirement.name}{requirement.specifier}'`"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Observation(what=requirement.name, told="not installed", state="fault", mend=mend)
    if not requirement.specifier.contains(version, prereleases=True):
        told = f"{version} (asked: {requirement.specifier})"
        return Observation(what=requirement.name, told=told, state="fault", mend=mend)
    return Observation(what=requirement.name, told=version)


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


def try_operators() -> str:
    """Compiled operators of torchvision fit this torch."""
    from torchvision.ops import nms

    kept = nms(torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 8.0]]), torch.tensor([0.5, 0.9]), 0.5)
    if kept.tolist() != [1]:
        raise RuntimeError(f"non-maximum suppression kept {kept.tolist()} where it had to keep [1]")
    return "compiled operators work"


def try_four_bits() -> str:
    """A matrix is held in 4 bits by bitsandbytes and multiplied by, on the GPU where there is one."""
    from bitsandbytes.nn import Linear4bit

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    plain = torch.nn.Linear(256, 256, bias=False)
    plain.weight.data = torch.randn(256, 256, generator=generator)
    packed = Linear4bit(256, 256, bias=False, compute_dtype=torch.float32, quant_type="nf4", quant_storage=torch.uint8)
    packed.load_state_dict(plain.state_dict())
    packed = packed.to(device)
    rows = torch.randn(8, 256, generator=generator)
    with torch.no_grad():
        expected, found = plain(rows), packed(rows.to(device)).float().cpu()
    error = float((found - expected).norm() / expected.norm())
    # 4 bits of a normal distribution are off by 0.1; anything else is no rounding.
    if not error < 0.2:
        raise RuntimeError(f"a product with 4-bit weights is off by {error:.2f} of its size")
    return f"4-bit product on {device}, off by {error:.2f} of its size as 4 bits are"


def try_embedded_model() -> str:
    """The embedded model loads, sees a scene and answers."""
    from vr1.data.synthetic import SceneSource
    from vr1.policy.loading import PolicySource
    from vr1.prompts import PromptEncoder
    from vr1.rollout.generate import generate
    from vr1.rollout.sampling import Sampling

    started = time.perf_counter()
    source = PolicySource()
    policy, processor, family = source.load().eval(), source.processor(), source.family()
    prompts = PromptEncoder(processor, family, 1024)([SceneSource(length=1, split="val")[0]])
    sampling = Sampling(group_size=1, temperature=0.0, max_new_tokens=128)
    answer = generate(policy, prompts, sampling, processor.tokenizer).texts[0][0]
    boxes = len(family.read(answer).boxes)
    return f"loads and answers with {boxes} box{'' if boxes == 1 else 'es'} in {time.perf_counter() - started:.1f} s"


TRIALS: dict[str, tuple[Callable[[], str], str]] = {
    "torchvision": (try_operators, "install the torchvision that belongs to this torch"),
    "bitsandbytes": (try_four_bits, "--model.policy.quantize will not work here; reinstall bitsandbytes for this CUDA"),
    "embedded model": (try_embedded_model, "no model will work here before this one does"),
}
"""What is tried, by the thing that it tells of: the trial, and what its failure means."""


def observe_trials(trials: dict[str, tuple[Callable[[], str], str]] = TRIALS) -> list[Observation]:
    """Try everything; a failure of whatever kind is told with its last line.

    Example:
        >>> observe_trials({"nothing": (lambda: str(1 / 0), "learn to divide")})[0].told
        'ZeroDivisionError: division by zero'
    """
    found = []
    for what, (attempt, mend) in trials.items():
        try:
            found.append(Observation(what=what, told=attempt()))
        except Exception as error:
            told = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[-1]}"
            found.append(Observation(what=what, told=told, state="fault", mend=mend))
    return found
