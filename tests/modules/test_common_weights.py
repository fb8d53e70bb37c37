"""A reference has the weights that are not trained in common with the policy, and a training is the same to the bit.

Compared with the same training whose reference is a copy of all weights.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.distributed.tensor import DTensor

import vr1.policy.reference
from tests.strategies import runs
from vr1.losses import GRPO
from vr1.policy import PolicySource
from vr1.policy.tiny import Sizes, write_model

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")


def freeze_vision(source, monkeypatch):
    return replace(source, freeze_vision=True)


def freeze_layers(source, monkeypatch):
    """The vision tower is trained, and so is the last layer of the language model; what lies between is not."""
    original = PolicySource.wrap

    def wrap(self, network):
        network.get_input_embeddings().requires_grad_(False)
        network.model.language_model.layers[0].requires_grad_(False)
        return original(self, network)

    monkeypatch.setattr(PolicySource, "wrap", wrap)
    return source


def copy_everything(monkeypatch):
    monkeypatch.setattr(vr1.policy.reference, "common_weights", lambda policy: {})


def local(weight):
    return weight.to_local() if isinstance(weight, DTensor) else weight


class Weights(Callback):
    """The reference's weights before and after the training, and which of them are in the policy's memory."""

    def __init__(self):
        self.start, self.end, self.common, self.frozen = {}, {}, set(), {}

    def on_train_start(self, trainer, module):
        self.start = self.copies(module)

    def on_train_end(self, trainer, module):
        self.end = self.copies(module)
        [copied] = module.reference.policies()
        own = dict(copied.named_parameters())
        for name, weight in module.policy.named_parameters():
            if local(weight).data_ptr() == local(own[name]).data_ptr():
                self.common.add(name)
            if not weight.requires_grad:
                self.frozen[name] = list(weight.shape)

    def copies(self, module):
        [copied] = module.reference.policies()
        return {name: local(weight).detach().clone() for name, weight in copied.named_parameters()}


def train(source, folder, steps=3, average=None, save=None, ckpt_path=None, settings=None, **trainer):
    made = runs.module(source, optimizer=partial(torch.optim.AdamW, lr=3e-3), loss=GRPO(kl_coef=0.1), **settings or {})
    weights = Weights()
    callbacks = [
        weights,
        runs.Rows(folder),
        *([runs.WeightAverage(average)] if average else []),
        *([runs.SaveAt(3, save)] if save else []),
    ]
    runs.train(made, folder, steps=steps, ckpt_path=ckpt_path, save=save, callbacks=callbacks, **trainer)
    return made, weights


def assert_same(ours, theirs, one, other):
    """Figures of all steps, and everything that is written at the end but paths and times."""
    assert runs.rows(one) == runs.rows(other)
    assert any(row.get("grpo/kl", 0) > 0 for row in runs.rows(one))
    first, second = (torch.load(folder / "end.ckpt", weights_only=False) for folder in (one, other))
    assert first["state_dict"].keys() == second["state_dict"].keys() == ours.state_dict().keys()
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name
    for name, value in theirs.named_parameters():
        assert torch.equal(value, ours.get_parameter(name)), name


@pytest.mark.parametrize(
    ("freeze", "settings", "trainer"),
    [
        (freeze_vision, {}, {}),
        (freeze_layers, {}, {}),
        (freeze_layers, {"updates_per_rollout": 2}, {}),
        (freeze_vision, {}, {"accumulate_grad_batches": 2}),
        (freeze_vision, {}, {"precision": "bf16-mixed"}),
        (freeze_layers, {}, {"average": 0.6}),
    ],
    ids=["vision", "layers", "two updates", "accumulated", "bf16-mixed", "averaged"],
)
def test_a_training_is_the_same(source, tmp_path, monkeypatch, freeze, settings, trainer):
    source = freeze(source, monkeypatch)
    ours, weights = train(source, tmp_path / "ours", settings=settings, **trainer)
    assert weights.common == weights.frozen.keys() != set()
    assert len(weights.frozen) < len(weights.end)
    for name, value in weights.start.items():
        assert torch.equal(weights.end[name], value), name
    copy_everything(monkeypatch)
    theirs, apart = train(source, tmp_path / "theirs", settings=settings, **trainer)
    assert apart.common == set()
    assert_same(ours, theirs, tmp_path / "ours", tmp_path / "theirs")


def test_a_resumed_training_is_the_same(source, tmp_path):
    """The weights of a checkpoint are loaded after the reference is made, the averaged ones in it too."""
    source = replace(source, freeze_vision=True)
    ours, _ = train(source, tmp_path / "ours", steps=5, average=0.6, save=tmp_path / "three.ckpt")
    again, weights = train(source, tmp_path / "again", steps=5, average=0.6, ckpt_path=tmp_path / "three.ckpt")
    assert weights.common == weights.frozen.keys() != set()
    for name, value in source.load().named_parameters():
        assert torch.equal(weights.end[name], value), name
    for name, value in ours.named_parameters():
        assert torch.equal(value, again.get_parameter(name)), name
    assert runs.rows(tmp_path / "ours")[3:] == runs.rows(tmp_path / "again")


def on_two(source, out):
    """Every process writes which shards it has in common, and whether those of the reference are as they were."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("ours", "offloaded", "theirs"):
            if name == "theirs":
                copy_everything(monkeypatch)
            folder = out / name
            made, weights = train(source, folder, **runs.two(cpu_offload=name == "offloaded"))
            same = all(torch.equal(weights.end[key], value) for key, value in weights.start.items())
            torch.save((weights.common, weights.frozen, same), folder / f"weights{made.global_rank}")


def test_shards_are_in_common_too(source, tmp_path):
    """But for those that the last process pads, of weights whose rows are not a multiple of the processes."""
    sizes = Sizes(hidden=64, layers=2, heads=4, kv_heads=2, intermediate=96, vision_intermediate=97)
    write_model(tmp_path / "model", replace(sizes, vision_hidden=64, vision_layers=2, vision_heads=4))
    runs.start_two(replace(source, path=str(tmp_path / "model"), freeze_vision=True), tmp_path, on_two)
    for name in ("ours", "offloaded", "theirs"):
        for rank in (0, 1):
            common, frozen, same = torch.load(tmp_path / name / f"weights{rank}", weights_only=True)
            padded = {key for key, shape in frozen.items() if rank == 1 and shape[0] % 2}
            assert len(padded) == (8 if rank == 1 else 0), "weight and bias of two products in each of two layers"
            assert common == (set() if name == "theirs" else frozen.keys() - padded)
            assert same
        assert runs.rows(tmp_path / name) == runs.rows(tmp_path / "theirs")
    ours, offloaded, theirs = (
        torch.load(tmp_path / name / "end.ckpt", weights_only=False)["state_dict"]
        for name in ("ours", "offloaded", "theirs")
    )
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
        assert torch.equal(offloaded[name], value), name
