"""A killed process leaves no children behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vr1.distributed import die_with_parent

ROOT = Path(__file__).parents[1]
# A worker that has prepared more than a pipe holds waits for ever for a reader, if nothing ends it.
LOADING = """
import os, torch
from torch.utils.data import DataLoader
from vr1.distributed import die_with_parent

class Large(torch.utils.data.Dataset):
    def __len__(self): return 8
    def __getitem__(self, index): return bytes(1 << 20), os.getpid()

batches = iter(DataLoader(Large(), batch_size=None, num_workers=1, worker_init_fn=die_with_parent))
print(next(batches)[1], flush=True)
__import__("time").sleep(300)
"""


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's death is Linux's")
def test_workers_end_with_a_killed_training():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", LOADING], env=environment, stdout=subprocess.PIPE, text=True) as run:
        worker = int(run.stdout.readline())
        assert is_running(worker)
        run.send_signal(signal.SIGKILL)
        run.wait(timeout=30)
    deadline = time.monotonic() + 30
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(worker)


def test_elsewhere_than_on_linux_nothing_is_asked_of_the_system(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "ctypes", None)
    die_with_parent()
