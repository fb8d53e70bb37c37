"""configs/qlora_*.yaml with the embedded model on a CPU: it trains, saves, resumes to the last bit, and exports."""

from dataclasses import replace
from functools import partial

import bitsandbytes
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from tests.checkpoints.test_resume import assert_same
from tests.command import CONFIGS, Keep, run
from vr1.cli import main
from vr1.commands.trainer import settings_of
from vr1.modules.sft import SFTModule
from vr1.policy.loading import EMBEDDED_MODEL, Lora

pytestmark = pytest.mark.filterwarnings(
    "ignore:Paged optimizers are not supported on CPU", "ignore:The .*_dataloader' does not have many workers"
)


def fit(folder, steps, *arguments):
    """Train with the configuration for 40 GB at small sizes; the checkpoint of the last step."""
    folder.mkdir(exist_ok=True)
    small = ["--model.policy.path", EMBEDDED_MODEL, "--model.policy.max_pixels", 112 * 112]
    small += ["--model.sampling", '{"group_size": 2, "max_new_tokens": 8}', "--model.evaluation.max_new_tokens", 4]
    small += ["--data", "SceneDataModule", "--data.train_scenes", 8, "--data.val_scenes", 2, "--data.num_workers", 0]
    small += ["--data.batch_size", 2, "--trainer.accumulate_grad_batches", 2, "--trainer.max_steps", steps]
    small += ["--trainer.accelerator", "cpu"]
    small += ["--trainer.limit_val_batches", 0, "--trainer.callbacks.every_n_train_steps", 1]
    small += ["--trainer.callbacks+", "tests.command.Keep"]
    assert run(folder, "fit", "--config", CONFIGS / "qlora_a100_40gb.yaml", *small, *arguments) == 0
    [version] = (folder / "runs" / "qlora").iterdir()
    return version / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("uninterrupted"), 3), Keep.module


def test_quantisation_adapters_and_optimizer_of_the_run(trained):
    _, module = trained
    linear = [layer for layer in module.policy.base.model.language_model.modules() if isinstance(layer, Linear4bit)]
    assert {layer.weight.quant_type for layer in linear} == {"nf4"}
    assert all(layer.weight.quant_state.nested for layer in linear), "double quantisation"
    assert {layer.compute_dtype for layer in linear} == {torch.bfloat16}
    vision = module.policy.base.model.visual
    assert not any(isinstance(layer, Linear4bit) for layer in vision.modules())
    assert {parameter.dtype for parameter in vision.parameters()} == {torch.bfloat16}
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all("language_model" in name and "lora_" in name for name in trainable)
    optimizer = module.optimizers(use_pl_optimizer=False)
    assert type(optimizer) is bitsandbytes.optim.PagedAdamW8bit
    states = {state["state1"].dtype for state in optimizer.state.values()}
    # bitsandbytes stores the states of tensors with fewer than 4,096 values in float32.
    assert states == {torch.uint8, torch.float32}
    assert module.reference._copy is None, "the reference is the model with its adapters off"


def test_two_steps_and_one_more_equal_three(trained, tmp_path):
    uninterrupted, _ = trained
    two = fit(tmp_path / "two", 2)
    three = fit(tmp_path / "three", 3, "--ckpt_path", two)
    assert_same(torch.load(three, weights_only=True), torch.load(uninterrupted, weights_only=True))
    before = torch.load(two, weights_only=True)["state_dict"]
    after = torch.load(three, weights_only=True)["state_dict"]
    assert any((before[name] != value).any() for name, value in after.items())


def test_its_checkpoint_is_small(trained, tmp_path):
    plain = tmp_path / "plain.yaml"
    plain.write_text("model: {init_args: {policy: {quantize: null, lora: null, dtype: float32, freeze_vision: false}}}")
    full = fit(tmp_path, 1, "--config", plain, "--model.optimizer", "torch.optim.AdamW")
    assert trained[0].stat().st_size < 0.05 * full.stat().st_size


def test_it_is_exported_as_adapters(trained, tmp_path):
    ckpt, module = trained
    assert main(["export", "--ckpt", str(ckpt), "--out", str(tmp_path / "out")]) == 0
    base = AutoModelForImageTextToText.from_pretrained(EMBEDDED_MODEL, dtype=torch.bfloat16)
    loaded = PeftModel.from_pretrained(base, tmp_path / "out").state_dict()
    trained_weights = {name: value for name, value in module.policy.network.state_dict().items() if "lora_" in name}
    assert trained_weights
    for name, value in trained_weights.items():
        torch.testing.assert_close(loaded[name].float(), value.float(), rtol=0, atol=0)


@pytest.mark.parametrize("config", ["demo.yaml", "qlora_a100_40gb.yaml"])
@pytest.mark.parametrize("name", ["AdamW", "SGD", "RMSprop"])
@pytest.mark.parametrize("option", ["--model.optimizer", "--model.optimizer.class_path"])
def test_the_plain_name_of_an_optimizer_is_that_of_torch(option, name, config):
    """bitsandbytes, imported here, has classes of these names; the second configuration names one of its own."""
    assert hasattr(bitsandbytes.optim, name)
    first = ["fit", "--config", str(CONFIGS / config)]
    for words in ([option, name], [f"{option}={name}"]):
        optimizer = settings_of([*first, *words, "--model.optimizer.lr", "1e-5"]).model.init_args.optimizer
        assert optimizer.class_path == f"torch.optim.{name}"
        assert optimizer.init_args.lr == 1e-5
    other = settings_of([*first, option, f"bitsandbytes.optim.{name}", "--model.optimizer.lr", "1e-5"])
    assert other.model.init_args.optimizer.class_path == f"bitsandbytes.optim.{name}"


@pytest.mark.parametrize("kind", ["PagedAdamW8bit", "AdamW8bit", "Lion8bit", "PagedAdamW32bit"])
def test_optimizers_of_bitsandbytes_take_named_parameters(source, kind):
    module = SFTModule(policy=source, optimizer=partial(getattr(bitsandbytes.optim, kind), lr=1e-3))
    module.configure_model()
    optimizer = module.configure_optimizers()
    [group] = optimizer.param_groups
    assert group["param_names"] == [name for name, value in module.named_parameters() if value.requires_grad]
    before = group["params"][0].detach().clone()
    for parameter in group["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert (group["params"][0] != before).any()


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_backward_does_not_reach_the_vision_tower(source, prompts, quantize):
    policy = replace(source, lora=Lora(rank=2), quantize=quantize, gradient_checkpointing=True).load()
    assert not any(features.requires_grad for features in policy.image_features(prompts))
