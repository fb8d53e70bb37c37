"""``vr1 doctor`` on faulty installations and machines."""

from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

from vr1.cli import main
from vr1.commands.doctor.checks import (
    FUNCTION_CHECKS,
    check_4bit_weights,
    check_compiler,
    check_cpu,
    check_disk,
    check_gpus,
    check_operators,
    check_packages,
    check_requirement,
    check_shared_memory,
)
from vr1.cpu_kernels.library import load_library

GIB = 2**30


def test_this_installation_passes_all_checks(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"torch: {torch.__version__.partition('+')[0]}" in out
    assert "4-bit product on" in out
    assert "embedded model: loads and answers with" in out
    assert "faults: 0" in out


def test_every_required_package_is_checked():
    names = {result.name.lower() for result in check_packages()}
    assert {"torch", "transformers", "peft", "bitsandbytes", "lightning", "pycocotools"} <= names
    assert not {"trl", "ruff"} & names, "extras are not required"


@pytest.mark.parametrize(
    ("line", "message", "fix"),
    [
        ("torch>=999", "required: >=999", "pip install 'torch>=999'"),
        ("no-such-package>=1", "not installed", "pip install 'no-such-package>=1'"),
    ],
)
def test_a_package_that_is_missing_or_too_old(line, message, fix):
    result = check_requirement(line)
    assert result.state == "fault"
    assert message in result.message
    assert fix in result.fix


def test_faulty_packages_end_the_checks(monkeypatch, capsys):
    monkeypatch.setattr(metadata, "requires", lambda _: ["torch>=999", 'trl>=1; extra == "bench"'])
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "fault  torch" in out
    assert "machine" not in out


def test_little_shared_memory_and_disk_are_notes(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=64 * 2**20))
    [result] = check_shared_memory(tmp_path)
    assert (result.state, "num_workers 0" in result.fix) == ("note", True)
    assert check_shared_memory(tmp_path / "missing") == []
    assert check_disk(tmp_path).state == "note"


@pytest.mark.parametrize(("compiler", "message"), [("off", "none"), ("false", "decoding.c: the compiler failed")])
def test_a_compiler_that_is_missing_or_fails_is_a_note(monkeypatch, compiler, message):
    monkeypatch.setenv("CC", compiler)
    load_library.cache_clear()
    result = check_compiler()
    assert (result.state, result.message) == ("note", message)
    assert "gcc" in result.fix


def test_more_threads_than_cores_are_a_fault(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4096)
    assert check_cpu().state == "fault"


@pytest.mark.parametrize(
    ("capability", "free", "state", "fix"),
    [((8, 0), 39, "ok", ""), ((7, 5), 39, "note", "float16"), ((8, 0), 3, "note", "nvidia-smi")],
)
def test_a_gpu(monkeypatch, capability, free, state, fix):
    major, minor = capability
    properties = SimpleNamespace(name="NVIDIA T", major=major, minor=minor)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free * GIB, 40 * GIB))
    [result] = check_gpus()
    assert result.state == state
    assert fix in result.fix
    assert f"{free:.1f} of 40.0 GiB free" in result.message


@pytest.mark.parametrize(("built", "fix"), [(None, "CUDA build"), ("13.0", "update the driver")])
def test_a_driver_that_torch_cannot_use(monkeypatch, tmp_path, built, fix):
    driver = tmp_path / "version"
    driver.write_text("NVRM version: 580")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    [result] = check_gpus(driver)
    assert result.state == "fault"
    assert fix in result.fix
    assert [other.state for other in check_gpus(tmp_path / "missing")] == ["ok"]


def test_a_failed_function_is_reported_with_the_last_line_of_its_error(monkeypatch, capsys):
    def fails():
        raise ImportError("a long story\nlibcudart.so.13: cannot open shared object file")

    monkeypatch.setitem(FUNCTION_CHECKS, "bitsandbytes", (fails, "reinstall it"))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "fault  bitsandbytes: ImportError: libcudart.so.13: cannot open shared object file; reinstall it" in out
    assert "faults: 1" in out


def test_a_wrong_result_of_a_compiled_operator_is_an_error(monkeypatch):
    monkeypatch.setattr("torchvision.ops.nms", lambda *_: torch.tensor([0]))
    with pytest.raises(RuntimeError, match="returned rows"):
        check_operators()


def test_a_wrong_product_of_4bit_weights_is_an_error(monkeypatch):
    monkeypatch.setattr("bitsandbytes.nn.Linear4bit.forward", lambda self, rows: rows * 0)
    with pytest.raises(RuntimeError, match="relative error"):
        check_4bit_weights()
