"""Huge pages and segments that grow are on, unless the user, the kernel or vLLM's sleep forbids them."""

import os
import subprocess
import sys

import pytest

from tests.command import CONFIGS, ROOT, small
from vr1.commands.allocator import use_expandable_segments, use_huge_pages
from vr1.commands.trainer import prepare, settings_of

_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in _NAMES:
        # Set and removed, so that it is gone again after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_trainer_command_sets_it(tmp_path, tiny_model):
    prepare(["fit", *map(str, small(tiny_model)), "--out", str(tmp_path)])
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


@pytest.mark.parametrize("name", _NAMES)
def test_what_the_user_has_set_stays(tmp_path, tiny_model, monkeypatch, name):
    monkeypatch.setenv(name, "max_split_size_mb:512")
    prepare(["fit", *map(str, small(tiny_model)), "--out", str(tmp_path)])
    assert {key: os.environ[key] for key in _NAMES if key in os.environ} == {name: "max_split_size_mb:512"}


@pytest.mark.parametrize(("sleep", "is_set"), [("true", False), ("false", True)])
def test_an_engine_that_sleeps_forbids_it(tmp_path, tiny_model, sleep, is_set):
    sampler = ["--model.sampler", "vr1.rollout.VLLMSampler", "--model.sampler.sleep", sleep]
    prepare(["fit", *map(str, small(tiny_model)), *sampler, "--out", str(tmp_path)])
    assert ("PYTORCH_ALLOC_CONF" in os.environ) == is_set


def test_reading_settings_sets_nothing():
    settings_of(["fit", "--config", str(CONFIGS / "demo.yaml")])
    assert not set(_NAMES) & os.environ.keys()


def test_an_empty_value_is_a_choice_too():
    environment = {"PYTORCH_ALLOC_CONF": ""}
    assert not use_expandable_segments({}, environment)
    assert environment == {"PYTORCH_ALLOC_CONF": ""}


def test_torch_reads_it_without_a_complaint():
    code = "import torch; torch.zeros(1); print(torch.__version__)"
    environment = {**os.environ, "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


# The flags of the kernel for the memory of a tensor, after a command has imported torch.
_FLAGS = """
import contextlib
from vr1.cli import main
with contextlib.suppress(SystemExit):
    main(["doctor", "--help"])
import torch
tensor, found = torch.ones(2**23), False
for line in open("/proc/self/smaps"):
    first, last = line.split()[0], line.split()[-1]
    if "-" in first and not first.endswith(":"):
        start, end = (int(part, 16) for part in first.split("-"))
        found = start <= tensor.data_ptr() < end
    elif found and first == "VmFlags:":
        print("flags", line)
"""


@pytest.mark.skipif(not use_huge_pages({}), reason="this kernel offers no huge pages")
@pytest.mark.parametrize(("setting", "is_huge"), [({}, True), ({"THP_MEM_ALLOC_ENABLE": "0"}, False)])
def test_tensors_of_a_command_ask_for_huge_pages(setting, is_huge):
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"} | setting
    done = subprocess.run([sys.executable, "-c", _FLAGS], env=environment, capture_output=True, text=True, cwd=ROOT)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("flags"))
    assert ("hg" in line.split()) == is_huge
    assert "warn" not in done.stderr.lower()


@pytest.mark.parametrize(
    ("offers", "is_set"), [("always [madvise] never", True), ("[always] madvise never", True), ("[never]", False)]
)
def test_huge_pages_are_asked_for_where_the_kernel_has_them(tmp_path, offers, is_set):
    (tmp_path / "enabled").write_text(offers + "\n")
    environment = {}
    assert use_huge_pages(environment, tmp_path / "enabled") == is_set
    assert environment == ({"THP_MEM_ALLOC_ENABLE": "1"} if is_set else {})
    assert not use_huge_pages({}, tmp_path / "no_such_kernel")
