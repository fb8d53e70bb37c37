"""Decoding steps by kernels of vr1's own: on a GPU written in Triton, on a CPU those of `vr1.cpu_kernels`.

`check` decides whether they are used. `cache` is the attention by those of a GPU, `attention` and `layers` are these;
they import Triton, which comes with torch for GPUs, so nothing else may import them at its top. `cpu` is a step by
those of a CPU.
"""

from vr1.rollout.kernels.cache import KernelGroupCache
from vr1.rollout.kernels.check import Kernels, kernel_cache

__all__ = ["KernelGroupCache", "Kernels", "kernel_cache"]
