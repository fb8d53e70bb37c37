"""Exported folders against the trained policy, loaded by nothing but transformers and peft."""

import json
import os
import shutil

import pytest
import torch
import yaml
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

from tests.command import run, small, steps
from tests.processes import Command
from vr1.checkpoints.model_card import model_card
from vr1.cli import main
from vr1.data import SceneSource
from vr1.families import Qwen2VL


def export(ckpt, out, *arguments):
    assert main(["export", "--ckpt", str(ckpt), "--out", str(out), *arguments]) == 0
    return out


@torch.no_grad()
def logits(network, folder):
    """Logits for an image and a question, encoded by the processor and chat template of the folder."""
    processor = AutoProcessor.from_pretrained(folder)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Locate every star."}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[SceneSource(1, "test")[0].image], return_tensors="pt")
    return network.eval()(**inputs).logits.float()


def assert_trained(folder, network, policy, base):
    ours, theirs = logits(network, folder), logits(policy, folder)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    plain = AutoModelForImageTextToText.from_pretrained(base)
    assert (logits(plain, folder) - ours).abs().max() > 1e-3, "three steps changed nothing"


def test_a_full_run_is_a_whole_model(trained, tiny_model, tmp_path):
    policy, ckpt = trained("full")
    folder = export(ckpt, tmp_path / "out")
    assert_trained(folder, AutoModelForImageTextToText.from_pretrained(folder), policy, tiny_model)
    assert AutoProcessor.from_pretrained(folder).image_processor.size["longest_edge"] == 60 * 56 * 56


def test_a_lora_run_is_adapters(trained, tiny_model, tmp_path):
    policy, ckpt = trained("lora")
    folder = export(ckpt, tmp_path / "out")
    assert not (folder / "model.safetensors").exists()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_model)
    base = AutoModelForImageTextToText.from_pretrained(tiny_model)
    assert_trained(folder, PeftModel.from_pretrained(base, folder), policy, tiny_model)
    # transformers finds the base by itself.
    assert_trained(folder, AutoModelForImageTextToText.from_pretrained(folder), policy, tiny_model)


def test_a_qlora_run_is_adapters_of_a_base_in_four_bits(trained, tiny_model, tmp_path):
    policy, ckpt = trained("qlora")
    folder = export(ckpt, tmp_path / "out")
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=["model.visual", "lm_head"],
    )
    base = AutoModelForImageTextToText.from_pretrained(tiny_model, quantization_config=four_bits, dtype=torch.float32)
    for layer in base.modules():
        if isinstance(layer, Linear4bit):
            # bitsandbytes cannot repack matrices of the tiny model's sizes for the CPU.
            layer.support_avx512bf16_for_cpu = False
    assert_trained(folder, PeftModel.from_pretrained(base, folder), policy, tiny_model)
    assert "in 4 bits" in (folder / "README.md").read_text()


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_merged_adapters_are_a_whole_model(trained, tiny_model, tmp_path, kind):
    policy, ckpt = trained(kind)
    folder = export(ckpt, tmp_path / "out", "--merge")
    assert not (folder / "adapter_config.json").exists()
    network = AutoModelForImageTextToText.from_pretrained(folder)
    assert not hasattr(network, "peft_config")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert_trained(folder, network, policy, tiny_model)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_precision_is_written_and_named(trained, tmp_path, kind):
    _, ckpt = trained(kind)
    arguments = ["--merge"] if kind == "lora" else []
    folder = export(ckpt, tmp_path / "out", *arguments, "--dtype", "bfloat16")
    network = AutoModelForImageTextToText.from_pretrained(folder)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}


def test_a_base_that_has_moved(trained, tiny_model, tmp_path):
    policy, ckpt = trained("lora")
    moved = (tmp_path / "moved").resolve()
    moved.symlink_to(tiny_model)
    stored = torch.load(ckpt, weights_only=True)
    stored["vr1"]["policy"]["path"] = str(tmp_path / "gone")
    torch.save(stored, tmp_path / "gone.ckpt")
    assert main(["export", "--ckpt", str(tmp_path / "gone.ckpt"), "--out", str(tmp_path / "no")]) == 2
    folder = export(tmp_path / "gone.ckpt", tmp_path / "out", "--base", str(moved), "--merge")
    assert_trained(folder, AutoModelForImageTextToText.from_pretrained(folder), policy, tiny_model)


def test_the_card_of_a_run_of_the_command_line(tiny_model, tmp_path):
    arguments = [*small(tiny_model), *steps(1), "--trainer.callbacks", "callbacks.Export"]
    assert run(tmp_path, "fit", *arguments) == 0
    version = tmp_path / "runs" / "demo" / "version_0"
    [ckpt] = (version / "checkpoints").glob("*.ckpt")
    folder = export(ckpt, tmp_path / "with space")
    for readme in (folder / "README.md", version / "model" / "README.md"):
        card = readme.read_text()
        head = yaml.safe_load(card.split("---")[1])
        assert "base_model" not in head, "the base is a folder of this machine"
        assert f"`{tiny_model.name}`" in card
        assert str(tmp_path) not in card
        assert str(tiny_model) not in card
        assert "python -m vr1 fit --config demo.yaml" in card
        assert "| several categories | `Locate every item from the category list" in card
        assert "| val/map |" in card
        assert "train_scenes: 4" in card.split("## Data")[1].split("##")[0]
        assert "max_steps: 1" in card.split("## Configuration")[1]
    assert f"python -m vr1 export --ckpt {ckpt.name} --out 'with space'" in (folder / "README.md").read_text()


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_example_of_the_card_runs_in_the_exported_folder(trained, tmp_path, monkeypatch, kind):
    _, ckpt = trained(kind)
    folder = export(ckpt, tmp_path / "out")
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    alone = "import sys\nassert not {name for name in sys.modules if name.split('.')[0] == 'vr1'}"
    with Command([], folder, tmp_path, code=f"{code}\n{alone}\n", path=[folder]) as done:
        assert done.wait(300) == 0, done.errors


def test_a_card_names_hub_models_and_no_folder_of_the_machine():
    run = {
        "policy": {"path": "Qwen/Qwen2.5-VL-3B-Instruct", "quantize": None},
        "figures": {},
        "module": "GRPOModule",
        "prompt": Qwen2VL().prompt_info(),
        "command": "python -m vr1 fit --config /home/me/my.yaml --data.root=/data/cats --data.test '[/a/b.json, c/d]'",
        "config": "data: {root: ~/cats, url: 'https://host/a/b', files: [/data/one.json]}",
    }
    card = model_card(run, step=1, adapters=False)
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert "--config my.yaml --data.root=cats --data.test '[b.json, c/d]'" in card
    assert "root: cats" in card
    assert "- one.json" in card
    assert "https://host/a/b" in card
    assert "skip_special_tokens=False" in card


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (lambda state: state.pop("vr1"), [], "does not say which model it was trained from"),
        (lambda state: state["state_dict"].popitem(), [], "does not belong to its base"),
        (lambda state: None, ["--merge"], "there are no adapters to merge; leave --merge out"),
        (lambda state: None, ["--base", "nowhere/at/all"], "policy.path=nowhere/at/all: no config.json there"),
    ],
)
def test_what_cannot_be_exported_is_a_one_line_error(trained, tmp_path, capsys, damage, arguments, message):
    state = torch.load(trained("full")[1], weights_only=True)
    damage(state)
    torch.save(state, tmp_path / "damaged.ckpt")
    capsys.readouterr()
    assert main(["export", "--ckpt", str(tmp_path / "damaged.ckpt"), "--out", str(tmp_path / "out"), *arguments]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("vr1 export: error: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_and_a_missing_checkpoint(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["export", "--ckpt", str(tmp_path / "no.ckpt"), "--out", str(tmp_path)]) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert main(["export", "--ckpt", str(tmp_path / "no.ckpt"), "--out", str(tmp_path / "out")]) == 2
    assert "no.ckpt does not exist" in capsys.readouterr().err


def test_the_folder_of_a_run_stands_for_its_newest_checkpoint(trained, tmp_path, capsys):
    policy, ckpt = trained("full")
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "old.ckpt").write_bytes(b"not read")
    os.utime(checkpoints / "old.ckpt", (1, 1))
    shutil.copyfile(ckpt, checkpoints / "epoch=0-step=3.ckpt")
    export(tmp_path / "run", tmp_path / "out")
    assert "after 3 steps" in capsys.readouterr().out
    network = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(network, tmp_path / "out"), logits(policy, tmp_path / "out"))

    assert main(["export", "--ckpt", str(checkpoints / "last.ckpt"), "--out", str(tmp_path / "other")]) == 2
    assert "in its folder are epoch=0-step=3.ckpt, old.ckpt" in capsys.readouterr().err
    shutil.rmtree(checkpoints)
    (tmp_path / "run" / "run.json").write_text("{}")
    assert main(["export", "--ckpt", str(tmp_path / "run"), "--out", str(tmp_path / "other")]) == 2
    assert "has no checkpoint" in capsys.readouterr().err
