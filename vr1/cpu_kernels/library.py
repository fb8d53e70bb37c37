"""C sources of this package as libraries: compiled in about a second, once a process, where there is a C compiler.

They share torch's threads: GCC's OpenMP library has the name of the one that torch has loaded, so that the loader takes
that. With another compiler they run on one thread.
"""

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

__all__ = ["LibraryError", "NoCompilerError", "compiler", "load_library"]

_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-Wno-unknown-pragmas")
# The first of these that a compiler accepts is best for the processor.
_PROCESSOR_FLAGS = (("-march=native",), ("-mcpu=native",), ())
_SECONDS = 60


class LibraryError(Exception):
    """A source cannot be compiled or loaded here."""


class NoCompilerError(LibraryError):
    """There is no C compiler."""


def compiler() -> list[str] | None:
    """The command of the C compiler: the environment variable ``CC``, or else ``cc``, ``gcc`` or ``clang``.

    None where there is none, and on Windows, whose compiler does not know the vectors that the sources are written in.
    """
    if sys.platform == "win32":
        return None
    chosen = shlex.split(os.environ.get("CC", ""))
    if chosen:
        return chosen if shutil.which(chosen[0]) else None
    return next(([found] for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


@cache
def load_library(source: str) -> ctypes.CDLL:
    """Compile and load a C source of this package.

    Args:
        source: name of the file.

    Raises:
        NoCompilerError: there is no compiler.
        LibraryError: it does not compile the source, or the result does not load; with the compiler's first error.

    Example:
        >>> load_library("decoding.c") is load_library("decoding.c")
        True
    """
    command = compiler()
    if command is None:
        raise NoCompilerError("no C compiler")
    with tempfile.TemporaryDirectory(prefix="vr1-") as folder:
        # The loaded library stays usable when its file is gone.
        built = Path(folder) / "library.so"
        try:
            _compile(command, Path(__file__).with_name(source), built)
            return ctypes.CDLL(str(built))
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LibraryError(f"{source}: {error}") from error


def _compile(command: list[str], source: Path, built: Path) -> None:
    threads = ["-fopenmp"] if sys.platform == "linux" and _is_gcc(command) else []
    errors = []
    for processor in _PROCESSOR_FLAGS:
        done = subprocess.run(
            [*command, *_FLAGS, *processor, *threads, str(source), "-o", str(built), "-lm"],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        if done.returncode == 0:
            return
        errors.append(next((line for line in done.stderr.splitlines() if "error" in line), "the compiler failed"))
    raise LibraryError(f"{source.name}: {errors[-1]}")


def _is_gcc(command: list[str]) -> bool:
    told = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=_SECONDS).stdout
    return "Free Software Foundation" in told
