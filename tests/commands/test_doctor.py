"""What the doctor says of installations and machines that are not as they should be."""

from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

from vr1.cli import main
from vr1.commands.doctor import checks
from vr1.commands.doctor.checks import observe_packages, observe_requirement

GIB = 2**30


def test_this_installation_is_looked_at_and_tried(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"torch: {torch.__version__.partition('+')[0]}" in out
    assert "4-bit product on" in out
    assert "embedded model: loads and answers with" in out
    assert "faults: 0" in out


def test_every_required_package_is_looked_at():
    told = {seen.what.lower() for seen in observe_packages()}
    assert {"torch", "transformers", "peft", "bitsandbytes", "lightning", "pycocotools"} <= told
    assert not {"trl", "ruff"} & told, "extras are not required"


@pytest.mark.parametrize(
    ("line", "told", "mend"),
    [
        ("torch>=999", "asked: >=999", "pip install 'torch>=999'"),
        ("no-such-package>=1", "not installed", "pip install 'no-such-package>=1'"),
    ],
)
def test_a_package_that_is_missing_or_too_old(line, told, mend):
    seen = observe_requirement(line)
    assert seen.state == "fault"
    assert told in seen.told
    assert mend in seen.mend


def test_faulty_packages_end_the_visit(monkeypatch, capsys):
    monkeypatch.setattr(metadata, "requires", lambda _: ["torch>=999", 'trl>=1; extra == "bench"'])
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "fault  torch" in out
    assert "machine" not in out


def test_little_shared_memory_is_noted(monkeypatch, tmp_path):
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: SimpleNamespace(free=64 * 2**20))
    [seen] = checks._shared_memory(tmp_path)
    assert (seen.state, "num_workers 0" in seen.mend) == ("note", True)
    assert list(checks._shared_memory(tmp_path / "gone")) == []
    assert checks._disk(tmp_path).state == "note"


def test_more_threads_than_cores_are_a_fault(monkeypatch):
    monkeypatch.setattr(checks.torch, "get_num_threads", lambda: 4096)
    assert checks._cores().state == "fault"


def gpu(monkeypatch, capability, free):
    major, minor = capability
    found = SimpleNamespace(name="NVIDIA T", major=major, minor=minor)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free * GIB, 40 * GIB))
    [seen] = checks._gpus()
    return seen


@pytest.mark.parametrize(
    ("capability", "free", "state", "mend"),
    [((8, 0), 39, "ok", ""), ((7, 5), 39, "note", "float16"), ((8, 0), 3, "note", "nvidia-smi")],
)
def test_a_gpu(monkeypatch, capability, free, state, mend):
    seen = gpu(monkeypatch, capability, free)
    assert seen.state == state
    assert mend in seen.mend
    assert f"{free:.1f} of 40.0 GiB free" in seen.told


@pytest.mark.parametrize(("built", "mend"), [(None, "CUDA build"), ("13.0", "update the driver")])
def test_a_driver_that_torch_cannot_use(monkeypatch, tmp_path, built, mend):
    driver = tmp_path / "version"
    driver.write_text("NVRM version: 580")
    monkeypatch.setattr(checks, "_DRIVER", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    [seen] = checks._gpus()
    assert seen.state == "fault"
    assert mend in seen.mend


def test_a_failed_trial_is_told_in_its_last_line(monkeypatch, capsys):
    def fails():
        raise ImportError("a long story\nlibcudart.so.13: cannot open shared object file")

    monkeypatch.setitem(checks.TRIALS, "bitsandbytes", (fails, "reinstall it"))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "fault  bitsandbytes: ImportError: libcudart.so.13: cannot open shared object file; reinstall it" in out
    assert "faults: 1" in out


@pytest.mark.parametrize("wrong", ["kept", "product"])
def test_a_trial_compares_with_what_must_come_out(monkeypatch, wrong):
    if wrong == "kept":
        monkeypatch.setattr("torchvision.ops.nms", lambda *_: torch.tensor([0]))
        trial = checks.try_operators
    else:
        monkeypatch.setattr("bitsandbytes.nn.Linear4bit.forward", lambda self, rows: rows * 0)
        trial = checks.try_four_bits
    with pytest.raises(RuntimeError):
        trial()
