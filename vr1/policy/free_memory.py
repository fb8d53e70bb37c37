"""How much memory a device has for new tensors."""

import psutil
import torch

__all__ = ["free_bytes"]


def free_bytes(device: torch.device) -> int:
    """Bytes that new tensors on a device can take now.

    Args:
        device: a GPU, whose allocator also has memory to reuse, or the host.
    """
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + reusable)
