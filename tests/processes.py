"""Several processes in a test, forked from one that has imported what they need, which takes each ten seconds."""

import multiprocessing
import os
import runpy
import signal
import sys
import time
from pathlib import Path

import torch
from lightning.pytorch.strategies import DDPStrategy

# Nothing of vr1 or the tests, so that a test that changes a module for itself changes it for its processes alone.
multiprocessing.set_forkserver_preload(
    [
        "torch",
        "lightning.pytorch",
        "torchmetrics.detection",
        "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
        "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
        "peft",
        "bitsandbytes",
        "scipy.optimize",
        "pycocotools.cocoeval",
    ]
)


class _Forked(DDPStrategy):
    def __init__(self):
        super().__init__(start_method="forkserver", process_group_backend="gloo")

    def setup_environment(self):
        # Tensors come to a process in memory that all of them share. Lightning copies them for "spawn" alone.
        for tensor in (*self.lightning_module.parameters(), *self.lightning_module.buffers()):
            tensor.data = tensor.data.clone()
        super().setup_environment()


def two_ranks():
    """Settings of a trainer for two processes with DDP; new ones for each trainer, which keeps the strategy."""
    return {"devices": 2, "strategy": _Forked()}


def start_two(function, *arguments):
    """Call a function in two processes, with the number of each before the arguments, and wait for both."""
    torch.multiprocessing.start_processes(function, arguments, nprocs=2, start_method="forkserver")


class Command:
    """``python -m vr1`` in a folder, as a process of its own; it is killed if it still runs at the end of a ``with``.

    Args:
        arguments: of the command.
        folder: where it runs.
        files: where what it prints is written, to ``out.txt`` and ``errors.txt``.
        code: Python code that runs in place of ``python -m vr1``.
        path: what Python searches for modules first; None takes the folder and this repository.
    """

    def __init__(self, arguments, folder, files, *, code=None, path=None):
        self._out, self._errors = Path(files) / "out.txt", Path(files) / "errors.txt"
        streams = str(self._out), str(self._errors)
        path = [str(folder), str(Path(__file__).parents[1])] if path is None else [str(place) for place in path]
        settings = [str(argument) for argument in arguments], str(folder), dict(os.environ), streams, code, path
        self._process = multiprocessing.get_context("forkserver").Process(target=_run_command, args=settings)

    def __enter__(self):
        self._process.start()
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.join()

    def wait_until(self, condition):
        """Wait until a condition holds, and say whether the process still runs then."""
        while not condition() and self._process.is_alive():
            time.sleep(0.1)
        return self._process.is_alive()

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def wait(self, seconds):
        """Exit status; None if it still runs after so many seconds."""
        self._process.join(seconds)
        return self._process.exitcode

    @property
    def out(self):
        return self._out.read_text(encoding="utf-8") if self._out.exists() else ""

    @property
    def errors(self):
        return self._errors.read_text(encoding="utf-8") if self._errors.exists() else ""


def _run_command(arguments, folder, environment, streams, code, path):
    for number, file in enumerate(streams, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # As a shell leaves it, whatever this process was forked from does with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[:0] = path
    sys.argv[1:] = arguments
    if code is None:
        runpy.run_module("vr1", run_name="__main__", alter_sys=True)
    else:
        exec(code, {"__name__": "__main__"})
