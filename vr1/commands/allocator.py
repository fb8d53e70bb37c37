"""How torch's allocators get memory: huge pages on a CPU, segments that grow on a GPU."""

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

__all__ = ["use_expandable_segments", "use_huge_pages"]

_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")

# The second is the name before torch 2.9, which torch still reads.
_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def use_expandable_segments(
    sampler: Mapping[str, Any] | None, environment: MutableMapping[str, str] = os.environ
) -> bool:
    """Let torch's allocator extend its segments on GPUs, unless the user has chosen otherwise.

    Prompts and completions differ in length from step to step. In segments of fixed size, freed memory of one step is
    too short for the next and stays unused. torch reads the setting before its first tensor on a GPU, so this is called
    before a trainer is built; processes that the trainer starts inherit it.

    Args:
        sampler: settings of ``model.sampler``; with ``sleep``, vLLM frees segments itself, and cannot free such ones.
        environment: of this process; changed in place.

    Returns:
        Whether it was set.

    Example:
        >>> environment = {}
        >>> use_expandable_segments(None, environment), environment
        (True, {'PYTORCH_ALLOC_CONF': 'expandable_segments:True'})
        >>> use_expandable_segments(None, {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:512"})
        False

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-alloc-conf
    """
    if any(name in environment for name in _NAMES) or (sampler or {}).get("sleep"):
        return False
    environment[_NAMES[0]] = "expandable_segments:True"
    return True


def use_huge_pages(environment: MutableMapping[str, str] = os.environ, kernel: Path = _KERNEL) -> bool:
    """Let torch put tensors of 2 MiB and more on huge pages of the host, unless the user has chosen otherwise.

    A step on a CPU allocates and frees its activations again and again, and the kernel clears each page at its first
    use: with pages of 4 KiB that took 3 % of a step. torch reads the setting when it is imported, so this is called
    before; processes that the trainer starts inherit it.

    Args:
        environment: of this process; changed in place.
        kernel: what Linux says of huge pages: ``always [madvise] never``. torch would warn of a kernel without them.

    Returns:
        Whether it was set.

    Example:
        >>> environment = {"THP_MEM_ALLOC_ENABLE": "0"}
        >>> use_huge_pages(environment), environment
        (False, {'THP_MEM_ALLOC_ENABLE': '0'})

    Source: torch, c10/core/impl/alloc_cpu.cpp; https://docs.kernel.org/admin-guide/mm/transhuge.html
    """
    if _HUGE_PAGES in environment:
        return False
    try:
        offered = "[never]" not in kernel.read_text()
    except OSError:
        return False
    if offered:
        environment[_HUGE_PAGES] = "1"
    return offered
