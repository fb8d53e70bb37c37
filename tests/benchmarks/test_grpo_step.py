"""The step benchmark on the embedded model: vr1's side always, TRL's where TRL is installed."""

import json
import sys
from importlib.util import find_spec

import pytest
from step import main

from tests.conftest import ROOT
from vr1.data import SceneSource
from vr1.families import Qwen25VL
from vr1.policy import PolicySource
from vr1.prompts import PromptEncoder

SMALL = [
    "--shape=embedded",
    "--image=[112,112]",
    "--prompt_tokens=60",
    "--group_size=2",
    "--new_tokens=6",
    "--rounds=1",
]
PARTS = {"prompt", "prefill", "decode", "reward", "reference", "policy forward", "policy backward", "optimizer"}
needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed (extra bench)")


@pytest.fixture
def step(tmp_path, monkeypatch, capsys):
    """Runs the benchmark, whose sides are processes of their own; returns what it found and printed."""

    def run(*arguments):
        file = tmp_path / "step.json"
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setattr(sys, "argv", ["step.py", *SMALL, "--json", str(file), *arguments])
        main()
        return json.loads(file.read_text()), capsys.readouterr().out

    return run


def test_vr1s_side(step):
    found, printed = step("--sides", "[ours]")
    assert found["rounds"] == 1
    assert found["group_size"] == 2
    parts = found["parts"]["ours"]
    assert parts.keys() == PARTS
    assert min(parts.values()) >= 0
    assert sum(parts.values()) == pytest.approx(found["step_seconds"]["ours"], rel=0.05)
    weights = (ROOT / "vr1/embedded/model.safetensors").stat().st_size
    assert found["peak_bytes"]["ours"] > 5 * weights, "policy, reference, gradients and two moments"
    assert found["tokens_per_second"]["ours"] == pytest.approx(12 / found["step_seconds"]["ours"])
    assert found["step_time_ratio"] is None
    assert "| vr1 |" in printed


@needs_trl
def test_both_sides(step):
    found, printed = step()
    seconds, peaks = found["step_seconds"], found["peak_bytes"]
    assert found["step_time_ratio"] == pytest.approx(seconds["theirs"] / seconds["ours"])
    assert found["peak_memory_ratio"] == pytest.approx(peaks["ours"] / peaks["theirs"])
    assert min(found["parts"]["theirs"].values()) >= 0
    assert "step time, TRL / vr1" in printed


@needs_trl
def test_both_sides_ask_the_same_question():
    from trl.data_utils import prepare_multimodal_messages

    processor = PolicySource().processor()
    record = SceneSource(1)[0]
    question = Qwen25VL().instruction(record.categories)
    messages = prepare_multimodal_messages([{"role": "user", "content": question}], images=[record.image])
    theirs = processor.apply_chat_template(
        [messages], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ours = PromptEncoder(processor, Qwen25VL(), 1024)([record])
    assert theirs["input_ids"].tolist() == ours.tokens.tolist()
    assert (theirs["pixel_values"] == ours.vision["pixel_values"]).all()
