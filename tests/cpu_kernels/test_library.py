"""Compiling C sources: which compiler and flags, and what is said where it fails."""

import subprocess
import sys

import pytest

from vr1.cpu_kernels import library
from vr1.cpu_kernels.library import LibraryError, NoCompilerError, compiler, load_library


@pytest.fixture
def fresh():
    """Nothing is compiled yet, nor later by what a test has replaced."""
    load_library.cache_clear()
    yield
    load_library.cache_clear()


@pytest.fixture
def wrapper(tmp_path, monkeypatch):
    """Makes a compiler of a few lines of shell, whose arguments are kept."""

    def make(lines):
        script = tmp_path / "own cc"
        script.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/calls"\n{lines}\n')
        script.chmod(0o755)
        monkeypatch.setenv("CC", f"'{script}' -DSOME")
        return tmp_path / "calls"

    return make


def test_the_environment_chooses_the_compiler(monkeypatch):
    monkeypatch.setenv("CC", "gcc -m64" if library.shutil.which("gcc") else f"{sys.executable} -m64")
    assert compiler()[1:] == ["-m64"]
    monkeypatch.setenv("CC", "off")
    assert compiler() is None
    monkeypatch.delenv("CC")
    assert len(compiler()) == 1
    monkeypatch.setattr(library.shutil, "which", lambda name: name)
    assert compiler() == ["cc"]
    monkeypatch.setattr(sys, "platform", "win32")
    assert compiler() is None


def test_without_a_compiler(fresh, monkeypatch):
    monkeypatch.setenv("CC", "off")
    with pytest.raises(NoCompilerError):
        load_library("decoding.c")


def test_a_source_is_compiled_once_for_this_processor(fresh, wrapper):
    real = library.shutil.which("cc") or library.shutil.which("gcc") or library.shutil.which("clang")
    calls = wrapper(f'exec "{real}" "$@"')
    assert load_library("decoding.c") is load_library("decoding.c")
    compiled = [line for line in calls.read_text().splitlines() if "decoding.c" in line]
    assert len(compiled) == 1
    assert "-DSOME" in compiled[0]
    assert "-march=native" in compiled[0]


def test_a_compiler_that_does_not_know_the_processor(fresh, wrapper):
    real = library.shutil.which("cc") or library.shutil.which("gcc") or library.shutil.which("clang")
    calls = wrapper(f'case "$*" in *native*) echo "error: unknown" >&2; exit 1;; esac\nexec "{real}" "$@"')
    assert load_library("decoding.c").step
    tried = [line for line in calls.read_text().splitlines() if "decoding.c" in line]
    assert [flag in line for line, flag in zip(tried, ("-march=native", "-mcpu=native", "-O2"), strict=True)] == [
        True
    ] * 3
    assert "native" not in tried[2]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            'echo "a.c: note" >&2; echo "a.c:3: error: too old" >&2; echo more >&2; exit 1',
            "decoding.c: a.c:3: error: too old",
        ),
        ("exit 1", "decoding.c: the compiler failed"),
        (
            'for last; do :; done; while [ "$1" != -o ]; do shift; done; echo no >"$2"',
            "decoding.c: .*(file too short|invalid ELF|not a mach-o|slice)",
        ),
    ],
    ids=["error", "nothing said", "no library"],
)
def test_what_fails_is_said(fresh, wrapper, lines, message):
    wrapper(lines)
    with pytest.raises(LibraryError, match=message) as caught:
        load_library("decoding.c")
    assert not isinstance(caught.value, NoCompilerError)


def test_a_compiler_that_hangs_is_ended(fresh, wrapper, monkeypatch):
    wrapper('case "$*" in *decoding.c*) exec sleep 60;; esac')
    monkeypatch.setattr(library, "_SECONDS", 1)
    with pytest.raises(LibraryError, match="timed out after 1 seconds"):
        load_library("decoding.c")


def test_without_a_temporary_folder(fresh, monkeypatch):
    def refuse(**_):
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(library.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(LibraryError, match=r"decoding.c: No usable temporary directory"):
        load_library("decoding.c")


def test_threads_are_those_of_torch():
    """A second OpenMP library would have threads of its own, which keep the processor busy while they wait."""
    if sys.platform != "linux":
        pytest.skip("reads /proc, which is Linux'")
    code = (
        "import torch; torch.ones(300, 300) @ torch.ones(300, 300)\n"
        "from vr1.cpu_kernels import decoding\n"
        "decoding.Product(torch.ones(300, 300))\n"
        "maps = open('/proc/self/maps').read().split()\n"
        "print(len({name for name in maps if 'omp' in name.rpartition('/')[2] and '.so' in name}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "1"
