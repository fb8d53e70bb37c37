"""Policies whose weights stay in their files: with these weights they are what a plain load gives."""

import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText

from tests.policy.tiny_models import KINDS, write_tiny
from vr1.policy import Lora, PolicySource, mapped
from vr1.policy.mapped import load_mapped, own_bytes


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(kind, dtype="float32"):
        """A model of a kind whose files are in a precision."""
        if (kind, dtype) not in made:
            made[kind, dtype] = tmp_path_factory.mktemp(f"{kind}_{dtype}")
            write_tiny(kind, made[kind, dtype])
            if dtype != "float32":
                network = AutoModelForImageTextToText.from_pretrained(made[kind, dtype], dtype=getattr(torch, dtype))
                network.save_pretrained(made[kind, dtype])
        return PolicySource(path=str(made[kind, dtype]))

    return folder


def filled(policy, weights):
    """The policy with its weights, each tied pair as one parameter."""
    named = dict(policy.named_parameters(remove_duplicate=False))
    made = {p: nn.Parameter(weights[n].to(p.dtype, copy=True), p.requires_grad) for n, p in named.items()}
    policy.load_state_dict({name: made[parameter] for name, parameter in named.items()}, strict=False, assign=True)
    return policy


def check(source):
    """Everything that a policy consists of, and the random numbers that follow."""
    torch.manual_seed(5)
    expected = source.load()
    expected_next = torch.rand(3)
    torch.manual_seed(5)
    policy, weights = load_mapped(source)
    assert torch.equal(torch.rand(3), expected_next)
    assert {parameter.device.type for parameter in policy.parameters()} == {"meta"}
    assert policy.base.config.to_dict() == expected.base.config.to_dict()
    assert policy.eos_tokens == expected.eos_tokens
    assert policy.base.generation_config.to_dict() == expected.base.generation_config.to_dict()
    named = dict(expected.named_parameters(remove_duplicate=False))
    assert list(dict(policy.named_parameters(remove_duplicate=False))) == list(named)
    assert list(dict(policy.named_parameters())) == list(dict(expected.named_parameters()))
    assert weights.keys() == named.keys()
    policy = filled(policy, weights)
    for name, parameter in policy.named_parameters(remove_duplicate=False):
        assert parameter.dtype == named[name].dtype, name
        assert parameter.requires_grad == named[name].requires_grad, name
        assert torch.equal(parameter, named[name]), name
    buffers = dict(expected.named_buffers())
    assert dict(policy.named_buffers()).keys() == buffers.keys()
    for name, buffer in policy.named_buffers():
        assert buffer.dtype == buffers[name].dtype, name
        assert torch.equal(buffer, buffers[name]), name
    return policy, expected, weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*computes image and prompt once per completion:UserWarning")
def test_every_kind_of_model(folders, kind):
    check(folders(kind))


@pytest.mark.parametrize("kind", ["qwen2_vl", "glm4v_moe", "gemma4", "griffon_g"])
@pytest.mark.parametrize(
    ("in_files", "asked"), [("bfloat16", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")]
)
@pytest.mark.filterwarnings("ignore:.*computes image and prompt once per completion:UserWarning")
def test_another_precision_than_that_of_the_files(folders, kind, in_files, asked):
    """Weights and buffers that a model keeps in float32 (GLM's router) stay so."""
    check(replace(folders(kind, in_files), dtype=asked))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_begin_with_the_same_values(folders, dtype, prompts):
    source = replace(folders("qwen2_vl", "bfloat16"), lora=Lora(rank=2), dtype=dtype, gradient_checkpointing=True)
    policy, _, weights = check(source)
    adapters = {name: weight for name, weight in weights.items() if "lora_" in name}
    assert adapters
    assert {weight.dtype for weight in adapters.values()} == {torch.float32}
    # Nothing but the adapters is in memory of the process's own.
    assert own_bytes(weights) == 4 * sum(weight.numel() for weight in adapters.values())
    assert sum(parameter.requires_grad for parameter in policy.parameters()) == len(adapters)


def test_log_probs(source, prompts, ragged_completions):
    policy, expected, _ = check(replace(source, freeze_vision=True))
    with torch.no_grad():
        ours, theirs = (one.log_probs(prompts, *ragged_completions)[0] for one in (policy, expected))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_vl", "internvl", "glm4v", "griffon_g"])
def test_no_weight_is_copied(folders, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, weights = load_mapped(replace(folders(kind, "bfloat16"), dtype="float32"))
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert own_bytes(weights) == 0


def test_tied_weights_stay_tied(source):
    policy, weights = load_mapped(source)
    head, embedding = policy.base.lm_head, policy.base.get_input_embeddings()
    assert head.weight is embedding.weight
    names = [name for name in weights if name.endswith(("lm_head.weight", "embed_tokens.weight"))]
    assert len({weights[name].data_ptr() for name in names}) == 1
    assert len(names) == 2


def test_files_of_several_precisions_are_read_as_ever(folders, tmp_path):
    folder = shutil.copytree(folders("qwen2_vl", "bfloat16").path, tmp_path / "mixed")
    state = load_file(folder / "model.safetensors")
    # A third of its precision would be lost in bfloat16.
    state = {name: value.float() * 1.001 if "norm" in name else value for name, value in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    message = r"files hold weights of several types \(torch.bfloat16, torch.float32\); each process reads the full"
    with pytest.warns(UserWarning, match=message):
        check(PolicySource(path=str(folder)))


def test_several_files(folders, tmp_path):
    folder = shutil.copytree(folders("qwen2_vl", "bfloat16").path, tmp_path / "parts")
    (folder / "model.safetensors").unlink()
    AutoModelForImageTextToText.from_pretrained(folders("qwen2_vl", "bfloat16").path).save_pretrained(
        folder, max_shard_size="100KB"
    )
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(PolicySource(path=str(folder)))


@pytest.mark.filterwarnings("ignore:.*computes image and prompt once per completion:UserWarning")
def test_weights_that_are_converted_while_they_are_read_are_reported(folders, monkeypatch):
    monkeypatch.setattr(mapped, "_MAX_COPIED", 0.0)
    with pytest.warns(UserWarning, match=r"\d+% of its weights are converted while they are read; each process"):
        check(folders("glm4v_moe"))


def test_own_bytes_count_each_memory_once():
    weight = torch.zeros(3, 4)
    assert own_bytes({"a": weight, "b": weight[1:], "c": torch.zeros(2, dtype=torch.bfloat16)}) == 48 + 4
