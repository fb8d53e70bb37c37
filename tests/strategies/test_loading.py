"""Two processes that shard a model each read their part of the weights from the files, and never hold all of it."""

import json
import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForImageTextToText

from tests.strategies import runs
from tests.strategies.runs import two
from vr1.losses import GRPO
from vr1.modules.grpo import GRPOModule
from vr1.policy import Lora, PolicySource
from vr1.policy.tiny import Sizes, write_model
from vr1.rollout import Sampling

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
_MIB = 2**20
# 21 million parameters: 41 MiB in the file, 81 in float32.
SIZES = Sizes(
    hidden=384,
    layers=8,
    heads=8,
    kv_heads=4,
    intermediate=1152,
    vision_hidden=256,
    vision_layers=6,
    vision_heads=8,
    vision_intermediate=768,
)


def resident(name):
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


class Loaded(Callback):
    """The weights that a training begins with, and the most memory that loading and sharding them took."""

    def __init__(self, out):
        self.out = out

    def setup(self, trainer, module, stage):
        # Loading is next. This resets the peak.
        Path("/proc/self/clear_refs").write_text("5")
        self.before = resident("VmRSS")

    def on_fit_start(self, trainer, module):
        peak = resident("VmHWM") - self.before
        counts, states = [], []
        for policy in module.policies():
            assert isinstance(policy, FSDPModule) == (trainer.world_size == 2)
            named = dict(policy.named_parameters(remove_duplicate=False))
            if trainer.world_size == 2:
                counts.append(sum(parameter.to_local().nbytes for parameter in policy.parameters()))
                named = {name: parameter.full_tensor() for name, parameter in named.items()}
            states.append({name: value.detach().clone() for name, value in named.items()})
            states[-1] |= dict(policy.named_buffers())
        trained = [[parameter.requires_grad for parameter in policy.parameters()] for policy in module.policies()]
        self.out.mkdir(parents=True, exist_ok=True)
        figures = {"peak": peak, "shards": counts, "trained": trained}
        (self.out / f"memory_{trainer.global_rank}.json").write_text(json.dumps(figures))
        if trainer.is_global_zero:
            torch.save(states, self.out / "states.pt")


def load(source, out, **settings):
    made = GRPOModule(
        policy=source,
        sampling=Sampling(group_size=2, max_new_tokens=2),
        loss=GRPO(kl_coef=0.1),
        optimizer=partial(torch.optim.SGD, lr=0.01),
    )
    runs.train(made, out, steps=1, callbacks=[Loaded(out)], **settings)


def on_two(sources, out):
    for name, source in sources.items():
        load(source, out / name, **two())


@pytest.fixture(scope="module")
def loaded(tiny_model, tmp_path_factory):
    """What two processes found, of small models and then of a larger one."""
    out = tmp_path_factory.mktemp("loaded")
    write_model(out / "model", SIZES)
    network = AutoModelForImageTextToText.from_pretrained(out / "model", dtype=torch.bfloat16)
    network.save_pretrained(out / "model")
    small = PolicySource(path=str(tiny_model), freeze_vision=True)
    sources = {
        "small": small,
        "half": replace(small, dtype="bfloat16"),
        "adapters": replace(small, lora=Lora(rank=3)),
        "large": PolicySource(path=str(out / "model")),
    }
    runs.start_two(sources, out, on_two)
    return sources, out


@pytest.mark.parametrize("name", ["small", "half", "adapters"])
def test_the_weights_are_those_of_a_plain_load(loaded, name, tmp_path):
    sources, out = loaded
    load(sources[name], tmp_path)
    expected, states = (torch.load(path / "states.pt", weights_only=True) for path in (tmp_path, out / name))
    assert len(states) == (1 if name == "adapters" else 2), "the policy, and the reference where that is a copy"
    for ours, theirs in zip(states, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key].dtype == value.dtype, key
            assert torch.equal(ours[key], value), key
    trained = [json.loads((path / "memory_0.json").read_text())["trained"] for path in (tmp_path, out / name)]
    assert trained[0] == trained[1]
    assert any(trained[0][0])
    assert not all(trained[0][0])
    assert not any(any(copy) for copy in trained[0][1:])


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peaks are read from Linux' /proc")
def test_a_process_needs_memory_for_its_shards_alone(loaded):
    """Beside them, pages of the file, which the processes share."""
    _, out = loaded
    parameters = sum(value.numel() for value in torch.load(out / "large" / "states.pt", weights_only=True)[0].values())
    file = (out / "model" / "model.safetensors").stat().st_size
    figures = [json.loads((out / "large" / f"memory_{rank}.json").read_text()) for rank in (0, 1)]
    for part in (0, 1):
        assert sum(figure["shards"][part] for figure in figures) == pytest.approx(4 * parameters, rel=0.2)
    for figure in figures:
        beside = figure["peak"] - sum(figure["shards"]) - file
        # The full model in float32 would be 81 MiB more, and the reference as much again.
        assert beside < 12 * _MIB, f"{beside / _MIB:.0f} MiB"
