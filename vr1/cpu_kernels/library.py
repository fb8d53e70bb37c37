"""C sources of this package as libraries: compiled in about a second, once a process, where there is a C compiler.

They share torch's threads: they are linked with the OpenMP library of GCC that torch brings. Threads of another one
would keep the processor busy while they wait. With another compiler they run on one thread.
"""

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["LibraryError", "NoCompilerError", "compiler", "load_functions", "load_functions_or_none", "load_library"]

_FLAGS = ("-O2", "-std=gnu11", "-fPIC", "-Wno-unknown-pragmas")
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
    try:
        # The loaded library stays usable when its file is gone.
        with tempfile.TemporaryDirectory(prefix="vr1-") as folder:
            built = Path(folder) / "library.so"
            _compile(command, Path(__file__).with_name(source), built)
            return ctypes.CDLL(str(built))
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LibraryError(f"{source}: {error}") from error


def load_functions(source: str, arguments: Mapping[str, Sequence[Any]], sizes: Collection[str] = ()) -> ctypes.CDLL:
    """A library as of `load_library` whose functions know the types of their arguments.

    Args:
        source: name of the file.
        arguments: of each function, types of ctypes.
        sizes: functions that return an int64; the others return nothing.

    Raises:
        NoCompilerError: as there.
        LibraryError: as there.
    """
    library = load_library(source)
    for name, types in arguments.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, ctypes.c_int64 if name in sizes else None
    return library


def load_functions_or_none(
    source: str, arguments: Mapping[str, Sequence[Any]], sizes: Collection[str] = ()
) -> ctypes.CDLL | None:
    """As `load_functions`, for functions that torch's operators can replace; warns where the source does not compile.

    Returns:
        None without a compiler, or with one that fails.
    """
    try:
        return load_functions(source, arguments, sizes)
    except NoCompilerError:
        return None
    except LibraryError as error:
        warnings.warn(f"training uses torch's operators, which take longer: {error}", stacklevel=3)
        return None


def _compile(command: list[str], source: Path, built: Path) -> None:
    threads = sys.platform == "linux" and _is_gcc(command)
    compiled = built.with_suffix(".o")
    for processor in _PROCESSOR_FLAGS:
        flags = [*_FLAGS, *processor, *(["-fopenmp"] if threads else [])]
        error = _error_of([*command, *flags, "-c", str(source), "-o", str(compiled)])
        if error is None:
            break
    else:
        raise LibraryError(f"{source.name}: {error}")
    libraries = [*(_openmp() if threads else []), "-lm"]
    if error := _error_of([*command, "-shared", str(compiled), "-o", str(built), *libraries]):
        raise LibraryError(f"{source.name}: {error}")


def _openmp() -> list[str]:
    """What to link with: the library in torch's folder, whatever its name, or the one that GCC knows."""
    [folder] = torch.__path__
    return [str(file) for file in Path(folder, "lib").glob("libgomp*.so*")][:1] or ["-fopenmp"]


def _error_of(command: list[str]) -> str | None:
    """Run a compiler; returns the first error that it prints, None where it succeeds."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode == 0:
        return None
    return next((line for line in done.stderr.splitlines() if "error" in line), "the compiler failed")


def _is_gcc(command: list[str]) -> bool:
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=_SECONDS).stdout
    return "Free Software Foundation" in version
