"""What accelerators have, and what of it a run cannot use."""

_GIB = 2**30
# Memory in GiB as the driver reports it.
GPUS = {
    "16gb": 15.7,
    "24gb": 23.6,
    "48gb": 47.4,
    "t4": 14.7,
    "l4": 22.0,
    "a10g": 22.1,
    "rtx4090": 23.5,
    "rtx5090": 31.4,
    "l40s": 44.5,
    "a100-40gb": 39.4,
    "a100-80gb": 79.2,
    "h100": 79.1,
    "h200": 139.8,
    "b200": 178.4,
}
# The context of CUDA with its kernels, and what the allocator cannot hand out again in the sizes that are asked for.
CONTEXT_GIB = 0.8
FRAGMENTATION = 0.05


def usable(gpu: str) -> float:
    """Bytes that tensors can take.

    Raises:
        ValueError: an accelerator that is not known.

    Example:
        >>> round(usable("a100-40gb") / 2**30, 1)
        36.7
    """
    if gpu not in GPUS:
        raise ValueError(
            f"--gpu {gpu} is not known; give one of {', '.join(GPUS)}, whichever has as much memory as yours"
        )
    return (GPUS[gpu] - CONTEXT_GIB) * (1 - FRAGMENTATION) * _GIB
