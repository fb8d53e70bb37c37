"""What a policy is loaded as: precision, adapters, frozen parts, 4-bit weights, resolution."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from bitsandbytes.nn import Linear4bit

from tests.conftest import ROOT
from tests.modules.test_grpo import build
from tests.trainers import trainer
from vr1.data import SceneDataModule, SceneStyle
from vr1.families import Qwen25VL
from vr1.policy import Lora, PolicySource
from vr1.policy.tiny import Sizes, write_model
from vr1.prompts import PromptEncoder


def trainable(policy):
    return {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_have_the_precision_asked_for(source, dtype):
    policy = replace(source, dtype=dtype).load()
    assert {parameter.dtype for parameter in policy.parameters()} == {getattr(torch, dtype)}
    assert policy.training


def test_everything_is_trained_unless_told_otherwise(source):
    policy = source.load()
    assert len(trainable(policy)) == len(list(policy.parameters()))


def test_a_frozen_vision_tower(source):
    policy = replace(source, freeze_vision=True).load()
    frozen = {name for name, _ in policy.named_parameters()} - trainable(policy).keys()
    assert frozen
    assert all(".visual." in name for name in frozen)
    assert not any(".visual." in name for name in trainable(policy))


def test_adapters_belong_to_the_language_model_alone(source):
    policy = replace(source, lora=Lora(rank=2, alpha=6, targets=["q_proj", "down_proj"])).load()
    names = trainable(policy).keys()
    assert names
    assert all("lora_" in name and ".language_model." in name for name in names)
    assert {name.split(".lora_")[0].split(".")[-1] for name in names} == {"q_proj", "down_proj"}
    config = policy.network.peft_config["default"]
    assert (config.r, config.lora_alpha) == (2, 6)


def test_adapters_change_nothing_at_first(source, prompts, ragged_completions):
    tokens, mask = ragged_completions
    with torch.no_grad():
        plain, _ = source.load().log_probs(prompts, tokens, mask)
        adapted, _ = replace(source, lora=Lora(rank=2)).load().log_probs(prompts, tokens, mask)
    torch.testing.assert_close(plain, adapted)


def gradients(policy, prompts, ragged_completions):
    """Gradients of the mean log-prob, adapters first set to the same arbitrary values."""
    tokens, mask = ragged_completions
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, parameter in trainable(policy).items():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    log_probs, _ = policy.log_probs(prompts, tokens, mask)
    log_probs[mask].mean().backward()
    return {name: parameter.grad for name, parameter in trainable(policy).items()}


ADAPTERS = [{}, {"lora": Lora(rank=2)}, {"lora": Lora(rank=2), "quantize": "nf4"}]


@pytest.mark.parametrize("adapters", ADAPTERS, ids=["whole", "lora", "qlora"])
def test_recomputed_activations_give_the_same_gradients(source, prompts, ragged_completions, adapters):
    kept, recomputed = (
        gradients(replace(source, gradient_checkpointing=again, **adapters).load(), prompts, ragged_completions)
        for again in (False, True)
    )
    for name, expected in kept.items():
        torch.testing.assert_close(recomputed[name], expected, rtol=1e-4, atol=1e-6)


def test_a_rollout_does_not_cut_four_bit_weights_off_from_gradients(tmp_path, prompts, ragged_completions):
    # Sizes that bitsandbytes would repack at the first forward in evaluation, on CPUs that it has kernels for.
    write_model(tmp_path, Sizes(hidden=64, layers=2, heads=4, kv_heads=4, intermediate=128))
    source = PolicySource(path=str(tmp_path), lora=Lora(rank=2), quantize="nf4")
    fresh, used = source.load(), source.load()
    used.eval()
    with torch.no_grad():
        used.log_probs(prompts, *ragged_completions)
    used.train()
    expected = gradients(fresh, prompts, ragged_completions)
    for name, gradient in gradients(used, prompts, ragged_completions).items():
        torch.testing.assert_close(gradient, expected[name])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_four_bit_weights_take_a_grpo_step_through_their_adapters(source, tmp_path, dtype):
    module = build(replace(source, lora=Lora(rank=2), quantize="nf4", dtype=dtype))
    module.configure_model()
    linear = [layer for layer in module.policy.modules() if isinstance(layer, Linear4bit)]
    assert linear
    assert {layer.weight.quant_type for layer in linear} == {"nf4"}
    vision = module.policy.base.model.visual
    assert not any(isinstance(layer, Linear4bit) for layer in vision.modules())
    assert {value.dtype for value in vision.parameters()} == {getattr(torch, dtype)}
    before = {name: value.detach().clone() for name, value in trainable(module.policy).items()}
    seen = {}

    class Gradients(pl.Callback):
        def on_before_optimizer_step(self, trainer, *_):
            seen.update({name: float(value.grad.abs().sum()) for name, value in trainable(module.policy).items()})

    training = trainer(tmp_path, [Gradients()], max_steps=1)
    training.fit(module, SceneDataModule(SceneStyle(), train_scenes=4, val_scenes=1, batch_size=2, num_workers=0))
    # B begins at zero, which leaves A without gradient in the first step.
    assert all(value > 0 for name, value in seen.items() if "lora_B" in name)
    after = trainable(module.policy)
    assert all((before[name] != after[name]).any() for name in after if "lora_B" in name)
    assert torch.isfinite(training.callback_metrics["grpo/loss"])


def image_tokens(source, records):
    prompts = PromptEncoder(source.processor(), Qwen25VL(), 1024)(records)
    return [width * height for width, height in prompts.input_sizes], (prompts.token_types == 1).sum(1).tolist()


def test_the_resolution_is_that_of_the_settings(source, records):
    own, own_tokens = image_tokens(source, records)
    small, small_tokens = image_tokens(replace(source, max_pixels=56 * 56), records)
    large, large_tokens = image_tokens(replace(source, min_pixels=168 * 168, max_pixels=336 * 336), records)
    assert all(less <= 56 * 56 < more for less, more in zip(small, own, strict=True))
    assert all(more >= 168 * 168 > less for more, less in zip(large, own, strict=True))
    assert all(a < b < c for a, b, c in zip(small_tokens, own_tokens, large_tokens, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "no/such/folder"}, "policy.path=no/such/folder: no config.json there"),
        ({"path": "."}, "policy.path=.: no config.json there"),
        ({"path": "folder of mine"}, "policy.path=folder of mine: no config.json there"),
    ],
)
def test_a_path_without_a_model_is_refused(source, change, message):
    with pytest.raises(ValueError, match=message):
        replace(source, **change).check()


def test_a_model_that_does_not_see_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(ValueError, match="a qwen2 model takes no images"):
        PolicySource(path=str(tmp_path)).check()


def test_pickled_weights_are_refused(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"found pytorch_model\.bin, but only safetensors weights are read"):
        PolicySource(path=str(folder)).check()


def test_adapters_without_a_layer_are_refused(source):
    with pytest.raises(ValueError, match=r"policy.lora.targets=\['no_proj'\]"):
        replace(source, lora=Lora(targets=["no_proj"])).load()


def test_four_bits_need_adapters():
    with pytest.raises(ValueError, match="quantize='nf4' requires adapters"):
        PolicySource(quantize="nf4")


def test_no_resolution_is_left(source):
    with pytest.raises(ValueError, match="min_pixels=50000 is more than max_pixels=12544"):
        replace(source, min_pixels=50000).processor()


WITHOUT_BITSANDBYTES = """
import importlib, pkgutil, sys
sys.modules["bitsandbytes"] = None
import callbacks, vr1
for package in (vr1, callbacks):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
from vr1.policy import PolicySource
PolicySource().load()
print("loaded")
"""


def test_nothing_imports_bitsandbytes_until_weights_are_quantized():
    done = subprocess.run([sys.executable, "-c", WITHOUT_BITSANDBYTES], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("loaded\n")
