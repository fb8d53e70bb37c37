"""Runs the steps one after another, each within its budget, and writes every measurement at once."""

import gc
import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

Shape = Literal["tiny", "qwen2.5-vl-3b", "qwen2.5-vl-7b"]
SHAPES: tuple[Shape, ...] = ("tiny", "qwen2.5-vl-3b", "qwen2.5-vl-7b")
# Name -> module with a function `run(bench)`, and its share of the time.
STEPS: dict[str, tuple[str, float]] = {
    "hardware": ("gpu_steps.hardware", 40),
    "correctness": ("gpu_steps.correctness", 80),
    "kernels": ("gpu_steps.kernels", 40),
    "decoding": ("gpu_steps.decoding", 120),
    "training": ("gpu_steps.training", 120),
    "plan": ("gpu_steps.memory", 40),
    "trl": ("gpu_steps.peers", 70),
    "strategies": ("gpu_steps.strategies", 50),
}


class SkippedError(Exception):
    """A step, or a part of one, that cannot run here; the text says why."""


class OverBudgetError(Exception):
    """A step that has used up its time."""


@dataclass(kw_only=True)
class Bench:
    """What all steps share: the device, the model's sizes, and the results so far.

    Attributes:
        device: where everything runs.
        shape: sizes of the model that is measured.
        out: folder of ``results.json``.
        results: the measurements, by step.
    """

    device: Literal["cuda", "cpu"]
    shape: Shape
    out: Path
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    step: str = ""

    @property
    def file(self) -> Path:
        """Where the results are."""
        return self.out / "results.json"

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the large model's weights."""
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    @property
    def precision(self) -> Literal["bf16-mixed", "32-true"]:
        """The trainer's precision."""
        return "bf16-mixed" if self.device == "cuda" else "32-true"

    @property
    def accelerator(self) -> str:
        """The trainer's accelerator."""
        return "gpu" if self.device == "cuda" else "cpu"

    def load(self) -> None:
        """Read the results that an earlier run has left in the folder."""
        if self.file.exists():
            self.results = json.loads(self.file.read_text())

    def has(self, name: str) -> bool:
        """Whether a part of the present step has a result, of an earlier run, that is not measured again."""
        found = self.results.get(self.step, {}).get(name)
        return isinstance(found, (dict, float))

    def record(self, **values: Any) -> None:
        """Add results to the step that runs, and write the file atomically (temporary file, then rename)."""
        self.results.setdefault(self.step, {}).update(values)
        self.out.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.results, indent=1, default=str) + "\n")
        part.replace(self.file)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part of a step that may fail alone: its error is a result, and the next part goes on."""
        started, state = time.monotonic(), "done"
        try:
            yield
        except OverBudgetError:
            state = "stopped"
            raise
        except SkippedError as error:
            state = f"skipped: {error}"
            self.record(**{name: state})
        except Exception as error:
            state = f"failed: {type(error).__name__}: {error}"
            self.record(**{name: state, f"{name} traceback": _tail()})
        finally:
            print(f"  {name}: {state}, {time.monotonic() - started:.1f} s", flush=True)
            self.free()

    def checkpointing_trainer(
        self, folder: Path, steps: int, callbacks: Sequence[L.Callback] = (), **settings: Any
    ) -> L.Trainer:
        """A quiet trainer of some steps that writes ``last.ckpt`` to a folder after each."""
        checkpoints = ModelCheckpoint(folder, every_n_train_steps=1, save_last=True, save_top_k=0)
        return L.Trainer(
            accelerator=self.accelerator,
            devices=1,
            max_steps=steps,
            limit_val_batches=0,
            gradient_clip_val=1.0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[*callbacks, checkpoints],
            **settings,
        )

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def free(self) -> None:
        """Give back memory that nothing refers to."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def seconds(self, work: Callable[..., Any], *inputs: Any, repeats: int = 5, warmup: int = 2) -> float:
        """Median seconds of ``work(*inputs)``, the device's included."""
        for _ in range(warmup):
            work(*inputs)
        times = []
        for _ in range(repeats):
            self.synchronize()
            started = time.perf_counter()
            work(*inputs)
            self.synchronize()
            times.append(time.perf_counter() - started)
        return sorted(times)[len(times) // 2]


def measure(bench: Bench, names: Sequence[str], seconds: float) -> None:
    """Run the steps in order.

    Args:
        bench: collects the results.
        names: the steps.
        seconds: for all of them; each gets its share, and what a short one leaves goes to the others.
    """
    _import_all(names)
    ends = time.monotonic() + seconds
    for index, name in enumerate(names):
        bench.step = name
        shares = [STEPS[other][1] for other in names[index:]]
        budget = (ends - time.monotonic()) * shares[0] / sum(shares)
        started = time.monotonic()
        print(f"{name}: up to {budget:.0f} s", flush=True)
        try:
            with _alarm(max(1.0, budget)):
                import_module(STEPS[name][0]).run(bench)
            state = "done"
        except OverBudgetError:
            state = f"stopped after {budget:.0f} s"
        except SkippedError as error:
            state = f"skipped: {error}"
        except Exception as error:
            state = f"failed: {type(error).__name__}: {error}"
            bench.record(traceback=_tail())
        bench.record(state=state, seconds=round(time.monotonic() - started, 1))
        print(f"{name}: {state}, {time.monotonic() - started:.0f} s", flush=True)
        bench.free()


def _import_all(names: Sequence[str]) -> None:
    """Import what the steps use before any clock runs: a budget that ends within an import leaves half a module."""
    import torch._dynamo  # noqa: F401 - torch imports it when an optimizer is made
    from transformers.utils import logging

    logging.disable_progress_bar()
    for package in ("bitsandbytes", "trl", "datasets"):
        with suppress(ImportError):
            import_module(package)
    for name in names:
        import_module(STEPS[name][0])


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `OverBudgetError` in this thread once the time is over."""

    def stop(*_: Any) -> None:
        raise OverBudgetError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _tail() -> list[str]:
    """The last lines of the traceback at hand, file names without their folders."""
    lines = traceback.format_exc().splitlines()[-14:]
    return [line.replace(os.getcwd() + os.sep, "") for line in lines]
