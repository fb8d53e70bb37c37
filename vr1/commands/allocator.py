"""Segments of GPU memory that grow, for trainings whose tensors have another size in every step."""

import os
from collections.abc import Mapping, MutableMapping
from typing import Any

__all__ = ["use_expandable_segments"]

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
