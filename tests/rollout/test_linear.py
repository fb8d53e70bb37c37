"""Prepared linear layers against the layers themselves."""

import pytest
import torch
from gpu_steps.decoding import CountDispatches
from peft import LoraConfig, get_peft_model
from torch import nn

from vr1.rollout.linear import merge_linear, prepare_linear


class Three(nn.Module):
    """Layers of one input, as in an attention."""

    def __init__(self, bias):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(64, width, bias=bias) for width in (64, 32, 32))


def with_lora(module, *, dropout=0.0, rslora=False, dora=False):
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], lora_dropout=dropout, use_rslora=rslora, use_dora=dora
    )
    model = get_peft_model(module, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def layers_of(model):
    base = model.base_model.model if hasattr(model, "base_model") else model
    return [base.q_proj, base.k_proj, base.v_proj]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lora", [None, {}, {"rslora": True}, {"dora": True}, {"dropout": 0.5}])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("rows", [3, 40])
def test_equals_the_layers_side_by_side(bias, lora, autocast, trained, rows):
    torch.manual_seed(0)
    model = Three(bias) if lora is None else with_lora(Three(bias), **lora)
    model.eval()
    if lora is None:
        model.requires_grad_(trained)
    inputs = torch.randn(rows, 64)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False):
        expected = torch.cat([layer(inputs) for layer in layers_of(model)], dim=1)
        found = prepare_linear(layers_of(model), rows)(inputs)
        residual = torch.randn_like(expected)
        summed = prepare_linear(layers_of(model), rows)(inputs, residual.clone())
    tolerance = {"atol": 0.15, "rtol": 0.02} if autocast else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(found.float(), expected.float(), **tolerance)
    torch.testing.assert_close(summed.float(), (expected + residual).float(), **tolerance)


def test_switched_off_and_merged_adapters_are_left_out():
    torch.manual_seed(0)
    inputs, model = torch.randn(3, 64), with_lora(Three(bias=True)).eval()
    layers = layers_of(model)
    with torch.inference_mode():
        with_adapters = torch.cat([layer(inputs) for layer in layers], dim=1)
        with model.disable_adapter():
            off = prepare_linear(layers, 3)(inputs)
            expected = torch.cat([layer(inputs) for layer in layers], dim=1)
        assert not torch.allclose(expected, with_adapters, atol=1e-2)
        torch.testing.assert_close(off, expected)
    model.merge_adapter()
    with torch.inference_mode():
        torch.testing.assert_close(prepare_linear(layers, 3)(inputs), with_adapters, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lora", [None, {}, {"rslora": True}])
@torch.inference_mode()
def test_one_weight_of_several_layers_with_their_adapters(bias, lora):
    torch.manual_seed(0)
    model = Three(bias) if lora is None else with_lora(Three(bias), **lora)
    layers, inputs = layers_of(model.eval()), torch.randn(5, 64)
    expected = torch.cat([layer(inputs) for layer in layers], dim=1)
    torch.testing.assert_close(nn.functional.linear(inputs, *merge_linear(layers)), expected, atol=1e-5, rtol=1e-5)
    if lora is None:
        return
    with model.disable_adapter():
        off = torch.cat([layer(inputs) for layer in layers], dim=1)
        torch.testing.assert_close(nn.functional.linear(inputs, *merge_linear(layers)), off, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(off, expected, atol=1e-2)


def test_layers_that_are_no_single_float32_weight():
    plain, hooked, half = nn.Linear(64, 8), nn.Linear(64, 8), nn.Linear(64, 8, dtype=torch.bfloat16)
    hooked.register_forward_hook(lambda *_: None)
    assert merge_linear([plain]) is not None
    for other in (hooked, half, nn.Sequential(nn.Linear(64, 8))):
        assert merge_linear([plain, other]) is None
    for changes in ({"dora": True}, {"dropout": 0.5}):
        assert merge_linear(layers_of(with_lora(Three(bias=True), **changes).train())) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert merge_linear([plain]) is None


def test_dropout_that_is_on_is_left_to_the_layers():
    model = with_lora(Three(bias=True), dropout=0.5).train()
    inputs = torch.ones(40, 64)
    with torch.inference_mode():
        product = prepare_linear(layers_of(model), 40)
        assert not torch.equal(product(inputs), product(inputs))


@pytest.mark.parametrize("lora", [True, False])
def test_four_bits(lora):
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    module = Three(bias=True)
    for name in ("q_proj", "k_proj", "v_proj"):
        old = getattr(module, name)
        new = bnb.nn.Linear4bit(64, old.out_features, compute_dtype=torch.float32, quant_type="nf4")
        new.load_state_dict(old.state_dict())
        new.support_avx512bf16_for_cpu = False
        setattr(module, name, new.to("cpu"))
    model = (with_lora(module) if lora else module).eval()
    inputs = torch.randn(5, 64)
    with torch.inference_mode():
        expected = torch.cat([layer(inputs) for layer in layers_of(model)], dim=1)
        torch.testing.assert_close(prepare_linear(layers_of(model), 5)(inputs), expected, atol=1e-5, rtol=1e-5)
        single = layers_of(model)[0]
        torch.testing.assert_close(prepare_linear([single], 5)(inputs), single(inputs), atol=1e-5, rtol=1e-5)
        assert merge_linear(layers_of(model)) is None
        merged = nn.functional.linear(inputs, *merge_linear(layers_of(model), dequantize=True))
        torch.testing.assert_close(merged, expected, atol=1e-4, rtol=1e-4)


def test_two_products_whatever_the_number_of_adapters():
    model = with_lora(Three(bias=True)).to(torch.bfloat16).eval()
    inputs = torch.randn(5, 64, dtype=torch.bfloat16)
    with torch.inference_mode():
        product = prepare_linear(layers_of(model), 5)
        with CountDispatches() as count:
            product(inputs)
    assert count.calls == {"addmm": 1, "addmm_": 1}


@torch.no_grad()
def is_copied(layers, rows):
    """Whether the function goes on with old weights when those of the layers change."""
    inputs = torch.randn(rows, 8, dtype=next(layers[-1].parameters()).dtype)
    function = prepare_linear(layers, rows)
    before = function(inputs)
    for layer in layers:
        for parameter in layer.parameters():
            parameter += 1
    return torch.equal(function(inputs), before)


def test_weights_of_one_layer_are_copied_only_where_they_are_trained_and_mkl_gains(monkeypatch):
    def trained():
        return nn.Linear(8, 8, bias=False)

    hooked = trained()
    hooked.register_forward_hook(lambda *_: None)
    for layer in (trained().requires_grad_(False), trained().to(torch.bfloat16), hooked, nn.Sequential(trained())):
        assert not is_copied([layer], rows=4)
    assert not is_copied([trained()], rows=33)
    assert is_copied([trained()], rows=4) == torch.backends.mkl.is_available()
    assert is_copied([trained(), trained()], rows=4)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not is_copied([trained()], rows=4)


def test_without_mkl_the_products_are_torchs(monkeypatch):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    layer, inputs = nn.Linear(64, 32), torch.randn(3, 64)
    with torch.inference_mode():
        product = prepare_linear([layer], 3)
        with CountDispatches() as count:
            result = product(inputs)
    assert count.calls == {"addmm": 1}
    torch.testing.assert_close(result, layer(inputs).detach())
