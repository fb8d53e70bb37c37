"""Settings that do not work together are refused before weights are loaded, with the combination to use."""

from functools import partial

import bitsandbytes
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from tests.command import run, small, steps
from vr1.errors import UserError
from vr1.modules.grpo import GRPOModule
from vr1.optimizers import MuonAdamW
from vr1.policy import Lora, PolicySource
from vr1.strategies import FullySharded
from vr1.strategies.combinations import check_combination

FOUR_BITS = {"lora": Lora(), "quantize": "nf4"}


def made(strategy):
    return strategy("cpu") if strategy is SingleDeviceStrategy else strategy()


@pytest.mark.parametrize(
    ("strategy", "policy", "settings", "message"),
    [
        (FullySharded, FOUR_BITS, {}, "set trainer.strategy ddp"),
        (FullySharded, {}, {"precision": "16-mixed"}, "set trainer.precision bf16-mixed"),
        (FullySharded, {}, {"optimizer": bitsandbytes.optim.PagedAdamW8bit}, "set model.optimizer torch.optim.AdamW"),
        (FullySharded, {"gradient_checkpointing": "auto"}, {}, "policy.gradient_checkpointing=auto .*; set it to true"),
        (ModelParallelStrategy, {}, {}, "set trainer.strategy fully_sharded"),
        (FSDPStrategy, {}, {}, "set trainer.strategy fully_sharded"),
        (FullySharded, {}, {"precision": "bf16-true"}, "set trainer.precision bf16-mixed"),
        (SingleDeviceStrategy, {}, {"precision": "bf16-true"}, "set trainer.precision bf16-mixed"),
        (DDPStrategy, {}, {"precision": "16-true"}, "set trainer.precision bf16-mixed"),
    ],
)
def test_refused(strategy, policy, settings, message):
    with pytest.raises(UserError, match=message):
        check_combination(made(strategy), PolicySource(**policy), **settings)


@pytest.mark.parametrize(
    ("strategy", "policy", "settings"),
    [
        (DDPStrategy, {"gradient_checkpointing": "auto"}, {}),
        (FullySharded, {"gradient_checkpointing": True}, {}),
        (DDPStrategy, FOUR_BITS, {"optimizer": bitsandbytes.optim.PagedAdamW8bit}),
        (FullySharded, {"lora": Lora()}, {"precision": "bf16-mixed", "optimizer": torch.optim.AdamW}),
        (FullySharded, {}, {"precision": "32-true", "optimizer": torch.optim.SGD}),
        (SingleDeviceStrategy, {}, {"precision": "bf16-mixed"}),
    ],
)
def test_allowed(strategy, policy, settings):
    check_combination(made(strategy), PolicySource(**policy), **settings)


def test_the_command_line_reports_it_before_anything_is_loaded(tmp_path, tiny_model, capsys, monkeypatch):
    monkeypatch.setattr(PolicySource, "load", lambda self: pytest.fail("loaded"))
    arguments = [*small(tiny_model), *steps(1), "--model.policy.lora.rank", 2, "--model.policy.quantize", "nf4"]
    arguments += ["--trainer.strategy", "fully_sharded", "--trainer.callbacks", "callbacks.Progress"]
    assert run(tmp_path, "fit", *arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("vr1: error: policy.quantize=nf4 with trainer.strategy fully_sharded")


def test_the_optimizer_is_known_before_it_is_made(source):
    for kind in (torch.optim.AdamW, MuonAdamW, bitsandbytes.optim.AdamW8bit):
        module = GRPOModule(policy=source, optimizer=partial(kind, lr=0.1))
        assert module.optimizer_class() is kind
