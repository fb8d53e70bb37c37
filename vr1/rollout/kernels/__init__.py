"""Kernels of vr1's own for a decoding step on a GPU, written in Triton.

`check` decides whether they are used, `cache` is the attention by them, `attention` and `layers` are the kernels. These
two import Triton, which comes with torch for GPUs, so nothing else may import them at its top.
"""

from vr1.rollout.kernels.cache import KernelGroupCache
from vr1.rollout.kernels.check import Kernels

__all__ = ["KernelGroupCache", "Kernels"]
