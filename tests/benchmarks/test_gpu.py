"""The GPU benchmark on a CPU with a tiny shape: the same code, each of its steps."""

import json
import subprocess
import sys
from pathlib import Path

import gpu
import pytest
from gpu_steps.report import render
from gpu_steps.run import STEPS, Bench, OverBudgetError, SkippedError, measure
from PIL import Image

ROOT = Path(__file__).parents[2]


def texts(values):
    if isinstance(values, dict):
        return [text for value in values.values() for text in texts(value)]
    return [values] if isinstance(values, str) else []


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    bench = Bench(device="cpu", shape="tiny", out=tmp_path_factory.mktemp("gpu"))
    measure(bench, list(STEPS), seconds=5000)
    return bench.file


def test_every_step_runs(results):
    found = json.loads(results.read_text())
    assert set(found) == set(STEPS)
    assert not [text for text in texts(found) if text.startswith(("failed", "stopped"))]
    assert {name for name, step in found.items() if step["state"] != "done"} <= {"trl"}


def test_results_say_what_they_should(results):
    found = json.loads(results.read_text())
    assert found["correctness"]["greedy_tokens_equal_cpu"] == 1
    # The sampler gives the tokens that it never samples, such as image tokens, no share of the probability.
    assert found["correctness"]["sampler_gap float32"]["max"] < 1e-3
    assert found["correctness"]["sampler_gap float32"]["mean"] < 1e-4
    training = found["correctness"]["training LoRA"]
    assert training == {"kl_at_first_step": pytest.approx(0, abs=1e-5), "largest_difference_after_resume": 0}
    ways = found["decoding"]["bf16 + LoRA"]["8 rows, more"]
    assert ways["eager"]["dispatches_per_token"] > 0
    assert ways["layers of transformers"]["ms_per_token"] > 0
    [case] = [case for name, case in found["training"].items() if name.startswith("bf16")]
    assert [step["seconds"] > 0 for step in case["steps"]] == [True, True]
    # The model that was made, not the embedded one, which has 5.
    assert case["layers"] == 6
    assert found["strategies"]["FSDP2"] == pytest.approx(found["strategies"]["DDP"], abs=1e-5)


def test_table_has_every_step(results):
    table = render(results)
    assert [line for line in table.splitlines() if line.startswith("## ")] == [f"## {name}" for name in STEPS]
    assert "| greedy_tokens_equal_cpu | 1 |" in table


def test_second_run_measures_what_has_no_result(tmp_path, results):
    (tmp_path / "results.json").write_text(results.read_text())
    bench = Bench(device="cpu", shape="tiny", out=tmp_path)
    bench.load()
    [name] = [name for name in bench.results["training"] if name.startswith("bf16")]
    bench.results["training"][name]["steps"] = "as it was"
    bench.results["decoding"].pop("bf16")
    measure(bench, ["training", "decoding"], seconds=200)
    found = json.loads(bench.file.read_text())
    assert found["training"][name]["steps"] == "as it was"
    assert found["decoding"]["bf16"]["8 rows"]["ms_per_token"] > 0
    assert found["correctness"] == json.loads(results.read_text())["correctness"]


def test_picture_of_the_published_results(tmp_path, monkeypatch, capsys):
    published = ROOT / "benchmarks" / "results" / "gpu" / "h200.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--render", str(published), "--picture", str(tmp_path / "gpu.png")])
    gpu.main()
    with Image.open(tmp_path / "gpu.png") as picture:
        assert picture.size > (800, 200)
    assert "| trl_over_vr1 | 6.78 |" in capsys.readouterr().out


def test_failure_keeps_earlier_results_and_the_next_step_runs(tmp_path, monkeypatch):
    def broken(bench):
        bench.record(first=1)
        raise RuntimeError("no such kernel")

    def slow(bench):
        raise OverBudgetError

    def absent(bench):
        raise SkippedError("trl is not installed")

    steps = {"broken": broken, "slow": slow, "absent": absent, "fine": lambda bench: bench.record(value=2)}
    for name, run in steps.items():
        module = type(sys)(f"step_{name}")
        module.run = run
        monkeypatch.setitem(sys.modules, f"step_{name}", module)
        monkeypatch.setitem(STEPS, name, (f"step_{name}", 1))
    bench = Bench(device="cpu", shape="tiny", out=tmp_path)
    measure(bench, list(steps), seconds=40)
    found = json.loads(bench.file.read_text())
    assert found["broken"]["first"] == 1
    assert found["broken"]["state"] == "failed: RuntimeError: no such kernel"
    assert found["slow"]["state"].startswith("stopped after")
    assert found["absent"]["state"] == "skipped: trl is not installed"
    assert found["fine"] == {"value": 2, "state": "done", "seconds": pytest.approx(0, abs=5)}


def test_needs_no_more_than_four_libraries(tmp_path):
    """On a machine that has torch, transformers, peft and lightning alone, the steps can be imported and run."""
    absent = [
        "bitsandbytes",
        "trl",
        "wandb",
        "pycocotools",
        "faster_coco_eval",
        "jsonargparse",
        "datasets",
        "tensorboard",
    ]
    arguments = f"gpu.py --out {tmp_path} --shape tiny --device cpu --only kernels,training".split()
    # Neither importable nor installed, as far as Lightning can see.
    code = f"""
import importlib.metadata as metadata, runpy, sys

installed = metadata.distribution
def distribution(name):
    if name.replace("-", "_") in {absent!r}:
        raise metadata.PackageNotFoundError(name)
    return installed(name)

metadata.distribution = distribution
metadata.version = lambda name: distribution(name).version
for name in {absent!r}:
    sys.modules[name] = None
sys.argv = {arguments!r}
runpy.run_path({str(ROOT / "benchmarks" / "gpu.py")!r}, run_name="__main__")
"""
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}", "PATH": "", "HF_HUB_OFFLINE": "1"}
    environment["OMP_NUM_THREADS"] = "1"
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert not [text for text in texts(found) if text.startswith(("failed", "stopped"))], found


def test_unknown_step_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", "x", "--only", "kernel"])
    with pytest.raises(SystemExit, match="--only kernel: no such step; there are hardware"):
        gpu.main()
