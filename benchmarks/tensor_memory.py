"""Memory of tensors on a CPU, by the record of torch's own allocator.

The memory of a process is no measure of them: it has libraries and their caches, freed memory that the C library keeps,
and not what is allocated and never written.
"""

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def allocations(function: Callable[[], Any]) -> tuple[int, set[int], Any]:
    """Call a function, and record what torch's CPU allocator gives and takes back.

    Tensors from before are not counted, nor when they are freed. Within the call, all are that its thread allocates:
    results of operators and what these need inside, in forward, backward and the optimizer.

    Returns:
        The most bytes that were allocated at a time, the addresses of what is allocated at the end, and the result.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(trace))
        with trace.open() as file:
            events = [event for event in json.load(file)["traceEvents"] if event.get("name") == "[memory]"]
    peak, allocated = 0, set()
    for event in sorted(events, key=lambda event: event["args"]["Ev Idx"]):
        size, total, address = (event["args"][key] for key in ("Bytes", "Total Allocated", "Addr"))
        if size < 0:
            allocated.discard(address)
        elif total:
            allocated.add(address)
            peak = max(peak, total)
        # A file that is mapped to memory is reported too, without a total: the allocator did not give that memory.
    return peak, allocated, result


def elsewhere(tensors: Iterable[Tensor], allocated: set[int]) -> int:
    """Bytes of tensors that are in no record: mapped from a file, or loaded by another thread.

    Args:
        tensors: each counts once, even if it is there several times.
        allocated: addresses from `allocations`.
    """
    unknown = (tensor for tensor in tensors if tensor.untyped_storage().data_ptr() not in allocated)
    return sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in unknown}.values())
