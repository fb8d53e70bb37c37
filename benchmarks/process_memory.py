"""Physical memory of this process."""

from pathlib import Path


def resident(name: str) -> int:
    """Bytes in use now (``VmRSS``), or at most so far (``VmHWM``).

    Raises:
        OSError: on anything but Linux.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        raise OSError("memory on a CPU is read from /proc/self/status, which only Linux has")
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
