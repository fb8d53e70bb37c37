"""A child process that does not outlive the one that started it."""

import signal
import sys


def die_with_parent(worker: int = 0) -> None:
    """End this process when its parent ends, even where that is killed; on Linux only.

    As ``preexec_fn`` of a trial, which would train on beside the one that replaces it; as ``worker_init_fn`` of a
    loader, whose workers would wait for ever for somebody to read what they have prepared.

    Args:
        worker: number of a loader's worker, of no importance here.
    """
    if sys.platform == "linux":
        import ctypes

        set_signal_of_parents_death = 1
        ctypes.CDLL(None).prctl(set_signal_of_parents_death, signal.SIGKILL)
