"""A trained model by the names that a user gives, against the trained policy."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from vr1.checkpoints.trained import load_trained, newest_model
from vr1.cli import main
from vr1.data import SceneSource
from vr1.errors import UserError
from vr1.policy.loading import EMBEDDED_MODEL
from vr1.prompts import PromptEncoder


@torch.no_grad()
def logits(network, source):
    """Logits for an image and a question."""
    prompts = PromptEncoder(source.processor(), source.family(), 1024)([SceneSource(1, "test")[0]])
    inputs = {"input_ids": prompts.tokens, "attention_mask": prompts.mask, **prompts.vision}
    return network.eval()(**inputs, **{prompts.types_name: prompts.token_types}).logits


def close(loaded, network):
    source, policy = loaded
    own, expected = logits(policy.network, source), logits(network, source)
    torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["full", "lora", "qlora"])
def test_checkpoint_run_and_exported_folder_give_the_trained_model(kind, trained, tmp_path):
    network, ckpt = trained(kind)
    close(load_trained(str(ckpt)), network)
    run = tmp_path / "demo" / "version_10"
    (run / "checkpoints").mkdir(parents=True)
    (tmp_path / "demo" / "version_9").mkdir()
    shutil.copy(ckpt, run / "checkpoints" / "last.ckpt")
    assert newest_model(str(tmp_path / "demo")) == str(run / "checkpoints" / "last.ckpt")
    close(load_trained(str(tmp_path / "demo")), network)
    assert main(["export", "--ckpt", str(ckpt), "--out", str(run / "model")]) == 0
    (run / "checkpoints" / "last.ckpt").unlink()
    source, policy = load_trained(str(run))
    # An exported folder has the resolution of the run in its processor; adapters are put on a base in full precision.
    assert policy.has_adapters == (kind != "full")
    if kind != "qlora":
        close((source, policy), network)


def test_the_newest_of_several_checkpoints_counts_whatever_its_name(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for age, name in ((30, "last.ckpt"), (10, "epoch=1.ckpt"), (20, "zero.ckpt")):
        (folder / name).touch()
        os.utime(folder / name, (1_000_000 - age, 1_000_000 - age))
    assert newest_model(str(tmp_path)) == str(folder / "epoch=1.ckpt")


def test_precision_and_resolution_can_be_set():
    source, policy = load_trained(EMBEDDED_MODEL, "bfloat16", 28 * 28 * 16)
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.bfloat16}
    assert source.processor().image_processor.size["longest_edge"] == 28 * 28 * 16


def test_a_run_without_a_model_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="neither a checkpoint nor a model"):
        load_trained(str(tmp_path))
    with pytest.raises(UserError, match="no config"):
        load_trained(str(tmp_path / "nothing"))


def test_adapters_of_another_model_are_refused(trained, tmp_path):
    _, ckpt = trained("lora")
    folder = tmp_path / "adapters"
    assert main(["export", "--ckpt", str(ckpt), "--out", str(folder)]) == 0
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(iter(weights))
    save_file(
        {**weights, name.replace("layers.0", "layers.7"): weights[name].clone()}, folder / "adapter_model.safetensors"
    )
    with pytest.raises(UserError, match=r"layers\.7.* not in the other"):
        load_trained(str(folder))
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": None}))
    with pytest.raises(UserError, match="names no base model"):
        load_trained(str(folder))
