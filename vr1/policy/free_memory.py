"""How much memory a device has for new tensors."""

import psutil
import torch
import torch.distributed as dist

__all__ = ["SHARE", "free_bytes"]

# Of the free memory, what predicted tensors may take; the rest is for what is not predicted, and for fragments.
SHARE = 0.8


def free_bytes(device: torch.device) -> int:
    """Bytes that new tensors on a device can take now.

    Args:
        device: a GPU, whose allocator also has memory to reuse, or the host, whose memory all processes share.
    """
    if device.type != "cuda":
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        return int(psutil.virtual_memory().available) // processes
    reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + reusable)
