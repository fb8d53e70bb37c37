"""Two trainers that take turns: each runs in a process of its own and does one optimizer step when it gets a message.

Separate processes separate the memory of the sides; taking turns exposes both to the same load of the machine.
"""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from process_memory import resident

from grpo_step.settings import StepSettings

# What a process runs: it sets a trainer up and calls `Turns.wait` and `Turns.done` around every step.
Run = Callable[["Turns", StepSettings, Path, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One optimizer step.

    Attributes:
        seconds: wall time from the records to the end of the optimizer's work.
        busy_seconds: processor time of all threads, which does not depend on other jobs of the machine.
        parts: wall time by part.
        peak_bytes: most memory so far, see `Memory`.
    """

    seconds: float
    busy_seconds: float
    parts: dict[str, float]
    peak_bytes: int


class Memory:
    """Peak memory of a process: what its GPU tensors took, or on a CPU its resident size over that before the model."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.base = 0 if device == "cuda" else resident("VmRSS")

    def peak(self) -> int:
        """Bytes."""
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else resident("VmHWM") - self.base


class Turns:
    """The process's end: waits for its turn, and reports time and memory of the step."""

    def __init__(self, connection: Connection, settings: StepSettings) -> None:
        self.connection, self.settings = connection, settings
        self.memory = Memory(settings.device)
        self.parts: dict[str, float] = {}
        self.started = self.busy = 0.0

    def wait(self) -> None:
        """Wait for this process's turn and start a step."""
        self.connection.send("ready")
        self.connection.recv()
        self.parts = {}
        self.started, self.busy = self.now(), time.process_time()

    def now(self) -> float:
        """The time once the device has finished all work."""
        self.settings.synchronize()
        return time.perf_counter()

    def done(self) -> None:
        """End the step."""
        seconds = self.now() - self.started
        busy = time.process_time() - self.busy
        self.connection.send(
            Turn(seconds=seconds, busy_seconds=busy, parts=dict(self.parts), peak_bytes=self.memory.peak())
        )


def _serve(run: Run, connection: Connection, settings: StepSettings, folder: Path, steps: int) -> None:
    run(Turns(connection, settings), settings, folder, steps)


class Side:
    """The other end: a trainer in a process of its own, ready for its first step.

    Raises:
        EOFError: the process ended before its work was done; its own error is on the terminal.
    """

    def __init__(self, run: Run, settings: StepSettings, folder: Path, steps: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(run, theirs, settings, folder, steps), daemon=True)
        self.process.start()
        theirs.close()
        self.left = steps
        assert self.connection.recv() == "ready"

    def step(self) -> Turn:
        """Run one optimizer step."""
        self.connection.send("go")
        turn = self.connection.recv()
        assert isinstance(turn, Turn)
        self.left -= 1
        # All work between two steps is done before the other side's turn.
        if self.left:
            assert self.connection.recv() == "ready"
        else:
            self.process.join()
        return turn
