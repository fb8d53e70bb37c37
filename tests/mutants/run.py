"""Plants the faults of `tests.mutants` one at a time and runs the tests that should notice.

    python -m tests.mutants.run [--set all] [--only WORD] [--jobs 1] [--seconds 900] [--skip-check]

There are three sets: `first` (`faults.py`), which the tests were written for; `outside` (`outside_faults.py`) and
`fresh` (`fresh_faults.py`), each by somebody who had seen neither the earlier faults nor what the tests assert.

The faults are planted in copies of the repository, one for each job, never in the checkout. A fault is noticed if a
test fails, the first of which is named; it must not be an error of collection. Tests on real images, which need data
sets beside the checkout, are skipped in the copies. Heavy packages are imported once and each fault is tried in a fork,
so that a hundred faults take minutes and not hours. A test that hangs fails after ten minutes, as in every run; faults
whose tests take longer than ``--seconds`` have no result. Exit status 1 if a fault is not noticed.
"""

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from tests.mutants import faults, fresh_faults, outside_faults
from tests.mutants.faults import Fault

ROOT = Path(__file__).parents[2]
SETS = {"first": faults.FAULTS, "outside": outside_faults.FAULTS, "fresh": fresh_faults.FAULTS}
# Imported before the forks; nothing of the repository, which each fork reads from the copy.
HEAVY = (
    "torch",
    "lightning.pytorch",
    "torchmetrics.detection",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "peft",
    "scipy.optimize",
    "bitsandbytes",
    "pycocotools.cocoeval",
    "pytest",
)


def copied(target: Path) -> None:
    """Copy what git would commit, and untracked files that it does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def planted(fault: Fault, root: Path) -> str:
    """The text of the fault's file with the fault in it.

    Raises:
        ValueError: the source is not found in the file exactly once, or nothing would change.
    """
    text = (root / fault.file).read_text(encoding="utf-8")
    if (count := text.count(fault.source)) != 1:
        raise ValueError(f"{fault.file}: {fault.source!r} stands there {count} times, not once")
    if fault.source == fault.replacement:
        raise ValueError(f"{fault.file}: {fault.source!r} is replaced by itself")
    return text.replace(fault.source, fault.replacement)


@contextmanager
def fault_in(fault: Fault, root: Path) -> Iterator[None]:
    """The fault is in its file while this lasts."""
    file = root / fault.file
    before = file.read_text(encoding="utf-8")
    file.write_text(planted(fault, root), encoding="utf-8")
    try:
        yield
    finally:
        file.write_text(before, encoding="utf-8")


class FirstFailure:
    """A plugin of pytest that writes the name of the first test that fails to a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.file.exists():
            self.file.write_text(report.nodeid, encoding="utf-8")


def run_tests(tests: tuple[str, ...], root: Path, seconds: float) -> tuple[int, str]:
    """Exit status of pytest in a fork of this process, 124 after too long a time, and the first test that failed."""
    failure = root.with_name(f"{root.name}.failure")
    failure.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        status = 99
        with suppress(BaseException):
            os.setsid()
            os.chdir(root)
            os.environ["PYTHONPATH"] = str(root)
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "vr1", "callbacks")]:
                del sys.modules[name]
            sys.path[:] = [str(root), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
            sys.dont_write_bytecode = True
            arguments = ["-q", "-x", "-p", "no:cacheprovider", "--no-header", *tests]
            status = int(importlib.import_module("pytest").main(arguments, [FirstFailure(failure)]))
        os._exit(status)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), failure.read_text(encoding="utf-8") if failure.exists() else ""
        time.sleep(0.1)
    with suppress(ProcessLookupError):
        # The tests' own processes too: they are of the fork's session.
        os.killpg(child, 9)
    os.waitpid(child, 0)
    return 124, ""


MEANINGS = {0: "NOT NOTICED", 1: "noticed", 124: "NO RESULT"}


class Tried(NamedTuple):
    """What became of a fault: exit status of pytest, the first test that failed, and the seconds that it took."""

    status: int
    failed: str
    seconds: float


class Job:
    """A process that tries faults in a copy of the repository of its own."""

    root: Path

    @classmethod
    def start(cls, folders: Any) -> None:
        """Take the next copy."""
        cls.root = Path(folders.get())

    @classmethod
    def try_fault(cls, fault: Fault, seconds: float) -> Tried:
        """Plant a fault and run its tests."""
        started = time.monotonic()
        with fault_in(fault, cls.root):
            status, failed = run_tests(fault.tests, cls.root, seconds)
        return Tried(status, failed, time.monotonic() - started)


def main() -> None:
    """Try all faults, or some, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=("all", *SETS), default="all", help="which faults to try")
    parser.add_argument("--only", default="", help="try the faults whose file or source has this word")
    parser.add_argument("--jobs", type=int, default=1, help="how many faults to try at a time")
    parser.add_argument("--seconds", type=float, default=900, help="the longest time for one fault")
    parser.add_argument("--skip-check", action="store_true", help="do not first run all tests without any fault")
    arguments = parser.parse_args()
    for name in HEAVY:
        importlib.import_module(name)
    chosen = [
        (f"{name} {number}", fault)
        for name, listed in SETS.items()
        if arguments.set in ("all", name)
        for number, fault in enumerate(listed, start=1)
        if arguments.only in f"{fault.file} {fault.source} {fault.replacement}"
    ]
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        roots = [Path(folder) / f"copy_{number}" for number in range(max(1, arguments.jobs))]
        for root in roots:
            copied(root)
        tests = tuple(dict.fromkeys(test for _, fault in chosen for test in fault.tests))
        if not arguments.skip_check:
            status, failed = run_tests(tests, roots[0], 12 * arguments.seconds)
            if status:
                sys.exit(f"without any fault pytest ends with {status} ({failed}): make the tests pass first")
            print(f"without any fault {len(tests)} files or tests pass", flush=True)
        context = get_context("fork")
        folders = context.SimpleQueue()
        for root in roots:
            folders.put(str(root))
        with ProcessPoolExecutor(len(roots), context, Job.start, (folders,)) as pool:
            running = [pool.submit(Job.try_fault, fault, arguments.seconds) for _, fault in chosen]
            for (number, fault), future in zip(chosen, running, strict=True):
                tried = future.result()
                result = MEANINGS.get(tried.status, f"BROKEN (pytest ends with {tried.status})")
                counts[result] = counts.get(result, 0) + 1
                change = " ".join(fault.replacement.split())[:70]
                print(f"{number:11} {result:16} {tried.seconds:5.0f} s  {fault.file}: {change}", flush=True)
                if tried.failed:
                    print(f"{'':37}by {tried.failed}", flush=True)
    print(", ".join(f"{name}: {count}" for name, count in sorted(counts.items())))
    if counts.keys() - {"noticed"}:
        sys.exit(1)


if __name__ == "__main__":
    main()
