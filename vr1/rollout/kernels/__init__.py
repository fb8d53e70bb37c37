"""Decoding steps by kernels of vr1's own: on a GPU written in Triton, on a CPU those of `vr1.cpu_kernels`.

`check` decides whether they are used. `cache` is the attention by those of a GPU, `attention` and `layers` are these;
they import Triton, which comes with torch for GPUs, so nothing else may import them at its top. `cpu` is the attention
by those of a CPU.
"""

from vr1.rollout.kernels.cache import KernelGroupCache
from vr1.rollout.kernels.check import Kernels, kernel_cache
from vr1.rollout.kernels.cpu import CpuKernelCache, sample_token_by_kernel

__all__ = ["CpuKernelCache", "KernelGroupCache", "Kernels", "kernel_cache", "sample_token_by_kernel"]
