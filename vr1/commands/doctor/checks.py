"""The checks of ``vr1 doctor``: installed packages, the machine, and functions that a training needs."""

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
import torch
from packaging.requirements import Requirement

from vr1.cpu_kernels.library import LibraryError, compiler, load_library

__all__ = [
    "FUNCTION_CHECKS",
    "CheckResult",
    "check_4bit_weights",
    "check_compiler",
    "check_cpu",
    "check_disk",
    "check_embedded_model",
    "check_functions",
    "check_gpus",
    "check_machine",
    "check_memory",
    "check_operators",
    "check_packages",
    "check_requirement",
    "check_shared_memory",
]

_GIB = 2**30
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of one check.

    Attributes:
        name: the package, part of the machine or function that was checked.
        state: ``fault`` where a training fails, ``note`` where it may fail or could be faster, else ``ok``.
        message: what the check found.
        fix: how to fix it; empty if there is nothing to fix.

    Example:
        >>> print(CheckResult(name="disk", message="3 GiB free", state="note", fix="a 7B checkpoint takes 15 GiB"))
        note   disk: 3 GiB free; a 7B checkpoint takes 15 GiB
    """

    name: str
    state: Literal["ok", "note", "fault"] = "ok"
    message: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.state:6} {self.name}: {self.message}{f'; {self.fix}' if self.fix else ''}"


def check_packages(distribution: str = "vr1") -> list[CheckResult]:
    """Check Python, a distribution and every package that it requires.

    Args:
        distribution: name of the installed distribution.

    Example:
        >>> check_packages("no such distribution")[1].state
        'fault'
    """
    results = [CheckResult(name="Python", message=f"{platform.python_version()}, {sys.executable}")]
    try:
        requirements = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        fix = "run `pip install -e . -c constraints.txt` in its folder"
        return [*results, CheckResult(name=distribution, state="fault", message="not installed", fix=fix)]
    results.append(CheckResult(name=distribution, message=metadata.version(distribution)))
    return results + [check_requirement(line) for line in requirements if "extra ==" not in line]


def check_requirement(line: str) -> CheckResult:
    """Check that a required package is installed in a version that fits.

    Args:
        line: the requirement as in ``pyproject.toml``, such as ``torch>=2.11``.

    Example:
        >>> check_requirement("packaging>=9999").message.split(" (")[1]
        'required: >=9999)'
    """
    requirement = Requirement(line)
    fix = f"run `pip install '{requirement.name}{requirement.specifier}'`"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return CheckResult(name=requirement.name, state="fault", message="not installed", fix=fix)
    if not requirement.specifier.contains(version, prereleases=True):
        message = f"{version} (required: {requirement.specifier})"
        return CheckResult(name=requirement.name, state="fault", message=message, fix=fix)
    return CheckResult(name=requirement.name, message=version)


def check_machine() -> list[CheckResult]:
    """Check CPU, C compiler, memory, disk and GPUs."""
    return [
        check_cpu(),
        check_compiler(),
        check_memory(),
        *check_shared_memory(),
        check_disk(Path.cwd()),
        *check_gpus(),
    ]


def check_cpu() -> CheckResult:
    """Check that torch uses no more threads than there are cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    message = f"{cores} cores, {threads} threads a process"
    if threads > cores:
        return CheckResult(name="CPU", state="fault", message=message, fix=f"set OMP_NUM_THREADS to {cores} or less")
    return CheckResult(name="CPU", message=message)


def check_compiler() -> CheckResult:
    """Check that a C compiler compiles vr1's kernels for the CPU; those for a GPU need one as well."""
    command, fix = compiler(), "torch's operators are used, which is slower; install gcc or clang, or name it in CC"
    if command is None:
        return CheckResult(name="C compiler", state="note", message="none", fix=fix)
    try:
        load_library("decoding.c")
    except LibraryError as error:
        return CheckResult(name="C compiler", state="note", message=str(error), fix=fix)
    return CheckResult(name="C compiler", message=f"{' '.join(command)} compiles kernels")


def check_memory() -> CheckResult:
    """Check that 4 GiB of main memory are free."""
    memory = psutil.virtual_memory()
    message = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free"
    if memory.available < 4 * _GIB:
        fix = "importing all packages takes 1 GiB, the demo 2 GiB"
        return CheckResult(name="memory", state="note", message=message, fix=fix)
    return CheckResult(name="memory", message=message)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> list[CheckResult]:
    """Check that 1 GiB of shared memory is free, which data loader workers pass batches through.

    Args:
        folder: where shared memory is mounted; without such a folder there is nothing to check.
    """
    if not folder.is_dir():
        return []
    free = shutil.disk_usage(folder).free
    message = f"{free / _GIB:.1f} GiB free in {folder}"
    if free < _GIB:
        fix = "workers may crash with a bus error: start the container with --shm-size 8g, or set --data.num_workers 0"
        return [CheckResult(name="shared memory", state="note", message=message, fix=fix)]
    return [CheckResult(name="shared memory", message=message)]


def check_disk(folder: Path) -> CheckResult:
    """Check that 10 GiB are free on the disk of a folder."""
    free = shutil.disk_usage(folder).free
    message = f"{free / _GIB:.1f} GiB free in {folder}"
    if free < 10 * _GIB:
        fix = "a full checkpoint of a 7B model takes 15 GiB and its optimizer state twice that; adapters take megabytes"
        return CheckResult(name="disk", state="note", message=message, fix=fix)
    return CheckResult(name="disk", message=message)


def check_gpus(driver: Path = _NVIDIA_DRIVER) -> list[CheckResult]:
    """Check every GPU, or why there is none.

    Args:
        driver: a file that exists if NVIDIA's driver is installed, whether torch can use it or not.
    """
    cuda = torch.version.cuda or getattr(torch.version, "hip", None)
    if torch.cuda.is_available():
        return [_check_gpu(number, cuda) for number in range(torch.cuda.device_count())]
    if not driver.is_file():
        return [CheckResult(name="GPU", message="none; the embedded model trains without one")]
    if not cuda:
        message, fix = "the driver is installed, but torch is built without CUDA", "install a CUDA build of torch"
    else:
        message = f"the driver is installed, but torch for CUDA {cuda} cannot use it"
        fix = "update the driver, or install torch for an older CUDA; see also CUDA_VISIBLE_DEVICES"
    return [CheckResult(name="GPU", state="fault", message=message, fix=fix)]


def _check_gpu(number: int, cuda: str | None) -> CheckResult:
    properties = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    name = f"GPU {number}"
    message = f"{properties.name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free, CUDA {cuda}"
    if (properties.major, properties.minor) < (8, 0):
        fix = "no bfloat16 in hardware: set --model.policy.dtype float16 or float32"
        return CheckResult(name=name, state="note", message=message, fix=fix)
    if free < total / 2:
        return CheckResult(name=name, state="note", message=message, fix="another process has the rest (nvidia-smi)")
    return CheckResult(name=name, message=message)


def check_operators() -> str:
    """Call a compiled operator of torchvision, which fails if it was built for another torch.

    Returns:
        A message of success.

    Raises:
        RuntimeError: the operator computes a wrong result.
    """
    from torchvision.ops import nms

    rows = nms(torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 8.0]]), torch.tensor([0.5, 0.9]), 0.5).tolist()
    if rows != [1]:
        raise RuntimeError(f"non-maximum suppression returned rows {rows} instead of [1]")
    return "compiled operators work"


def check_4bit_weights() -> str:
    """Multiply by a matrix in 4 bits (bitsandbytes), on the GPU where there is one.

    Returns:
        A message of success.

    Raises:
        RuntimeError: the product is wrong.
    """
    from bitsandbytes.nn import Linear4bit

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    full = torch.nn.Linear(256, 256, bias=False)
    full.weight.data = torch.randn(256, 256, generator=generator)
    packed = Linear4bit(256, 256, bias=False, compute_dtype=torch.float32, quant_type="nf4", quant_storage=torch.uint8)
    packed.load_state_dict(full.state_dict())
    packed = packed.to(device)
    rows = torch.randn(8, 256, generator=generator)
    with torch.no_grad():
        expected, product = full(rows), packed(rows.to(device)).float().cpu()
    error = float((product - expected).norm() / expected.norm())
    # The relative error of NF4 on normally distributed weights is 0.1.
    if not error < 0.2:
        raise RuntimeError(f"a product with 4-bit weights has a relative error of {error:.2f}")
    return f"4-bit product on {device}, relative error {error:.2f} (0.1 is usual)"


def check_embedded_model() -> str:
    """Load the embedded model and let it answer a question about a synthetic scene.

    Returns:
        A message with the number of predicted boxes and the time.
    """
    from vr1.data.synthetic import SceneSource
    from vr1.policy.loading import PolicySource
    from vr1.prompts import PromptEncoder
    from vr1.rollout.sampler import SharedPrefixSampler
    from vr1.rollout.sampling import Sampling

    started = time.perf_counter()
    source = PolicySource()
    policy, processor, family = source.load().eval(), source.processor(), source.family()
    prompts = PromptEncoder(processor, family, 1024)([SceneSource(length=1, split="val")[0]])
    sampling = Sampling(group_size=1, temperature=0.0, max_new_tokens=128)
    answer = SharedPrefixSampler().sample(policy, prompts, sampling, processor.tokenizer).texts[0][0]
    boxes = len(family.read(answer).boxes)
    return f"loads and answers with {boxes} box{'' if boxes == 1 else 'es'} in {time.perf_counter() - started:.1f} s"


FUNCTION_CHECKS: dict[str, tuple[Callable[[], str], str]] = {
    "torchvision": (check_operators, "install the torchvision release that belongs to this torch"),
    "bitsandbytes": (check_4bit_weights, "--model.policy.quantize fails here; reinstall bitsandbytes for this CUDA"),
    "embedded model": (check_embedded_model, "no model works before this one does"),
}
"""By name: a function to call, which returns a message or raises, and the fix where it raises."""


def check_functions(checks: Mapping[str, tuple[Callable[[], str], str]] = FUNCTION_CHECKS) -> list[CheckResult]:
    """Call every function; a failure of any kind is a fault, reported with the last line of its message.

    Example:
        >>> check_functions({"division": (lambda: str(1 / 0), "learn to divide")})[0].message
        'ZeroDivisionError: division by zero'
    """
    results = []
    for name, (function, fix) in checks.items():
        try:
            results.append(CheckResult(name=name, message=function()))
        except Exception as error:
            message = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[-1]}"
            results.append(CheckResult(name=name, state="fault", message=message, fix=fix))
    return results
