"""What a sharded training is set up with, on one process: the same settings as on many."""

from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard import _fsdp_state
from torch.distributed.tensor import DTensor

from tests.save_at import SaveAt
from tests.trainers import trainer
from vr1.data import SceneDataModule, SceneStyle
from vr1.errors import UserError
from vr1.losses import GRPO
from vr1.modules.grpo import GRPOModule
from vr1.rollout import Sampling
from vr1.strategies import FullySharded, fully_sharded

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")


class Prefills(Callback):
    """Runs prompts of very unlike lengths through the policy and its reference, and counts the forwards."""

    def __init__(self, prompts):
        self.prompts, self.forwards, self.sharded = prompts, [], []

    @torch.no_grad()
    def on_train_start(self, trainer, module):
        for policy in module.policies():
            calls = []
            layer = policy.base.model.language_model.layers[0]
            hook = layer.register_forward_hook(lambda *_, calls=calls: calls.append(1))
            # The first forward of FSDP has to be that of its root.
            policy.log_probs(self.prompts, torch.full((2, 1, 1), 50), torch.ones(2, 1, 1, dtype=torch.bool))
            hook.remove()
            self.forwards.append(len(calls))
            self.sharded.append(isinstance(policy, FSDPModule) and isinstance(layer, FSDPModule))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_policy_and_reference_are_set_up_alike(source, encoder, records, tmp_path, monkeypatch, precision):
    long = replace(records[1], categories=tuple(f"circle number {number}" for number in range(12)))
    prompts = encoder([records[0], long])
    lengths = prompts.mask.sum(1)
    assert lengths.max() > 2 * lengths.min()
    given = []

    def recorded(part, **settings):
        given.append(settings["mp_policy"])
        return original(part, **settings)

    original = fully_sharded.fully_shard
    monkeypatch.setattr(fully_sharded, "fully_shard", recorded)
    module = GRPOModule(
        policy=source,
        sampling=Sampling(group_size=2, max_new_tokens=3),
        loss=GRPO(kl_coef=0.1),
        optimizer=partial(torch.optim.AdamW, lr=1e-4),
    )
    data = SceneDataModule(SceneStyle(), train_scenes=4, val_scenes=1, batch_size=2, num_workers=0)
    prefills = Prefills(prompts)
    run = trainer(tmp_path, [prefills], max_steps=1, strategy=FullySharded(), precision=precision)
    try:
        run.fit(module, data)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    # One forward of both prompts together, and one of the completions.
    assert prefills.forwards == [2, 2]
    assert prefills.sharded == [True, True]
    mixed = precision == "bf16-mixed"
    assert {policy.param_dtype for policy in given} == {torch.bfloat16 if mixed else None}
    assert {policy.reduce_dtype for policy in given} == {torch.float32 if mixed else None}
    assert not any(policy.cast_forward_inputs for policy in given)


def train_in_shards(source, folder, save=None, ckpt_path=None):
    """The weights after two steps, by their names in a checkpoint."""
    module = GRPOModule(
        policy=source,
        sampling=Sampling(group_size=2, max_new_tokens=3),
        loss=GRPO(kl_coef=0.0),
        seed=2,
        optimizer=partial(torch.optim.AdamW, lr=1e-3, eps=1e-4),
    )
    data = SceneDataModule(SceneStyle(), train_scenes=8, val_scenes=1, batch_size=2, num_workers=0, seed=3)
    run = trainer(
        folder,
        [SaveAt(1, save)] if save else [],
        max_steps=2,
        strategy=FullySharded(sharded_checkpoints=True),
        enable_checkpointing=bool(save),
    )
    try:
        run.fit(module, data, ckpt_path=ckpt_path)
        return {name: value.full_tensor().clone() for name, value in module.state_dict().items()}
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_a_model_with_tied_weights_resumes_from_its_shards(source, tmp_path):
    """A checkpoint has tied weights under each of their names."""
    whole = train_in_shards(source, tmp_path, save=tmp_path / "one.shards")
    tied = [name for name in whole if name.endswith(("embed_tokens.weight", "lm_head.weight"))]
    assert len(tied) == 2
    resumed = train_in_shards(source, tmp_path, ckpt_path=tmp_path / "one.shards")
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-6, msg=name)
    assert torch.equal(*(resumed[name] for name in tied))


class Gathers(Callback):
    """Counts how often weights are gathered, by what runs, and how many batches are answered."""

    def __init__(self):
        self.calls, self.batches, self.gathered = [], 0, []

    def watch(self, monkeypatch):
        original = FSDPModule.unshard

        def unshard(part, *arguments, **settings):
            if type(part).__name__ == "FSDPPolicy":
                self.calls.append(self.stage)
            return original(part, *arguments, **settings)

        monkeypatch.setattr(FSDPModule, "unshard", unshard)

    def setup(self, trainer, module, stage):
        self.stage = "train"

    def on_validation_start(self, trainer, module):
        self.stage = "validate"

    def on_validation_batch_end(self, trainer, module, *_):
        self.batches += 1
        # A gathered weight is a plain tensor.
        self.gathered.append(all(not isinstance(weight, DTensor) for weight in module.policy.parameters()))

    def on_validation_end(self, trainer, module):
        self.stage = "train"
        assert all(isinstance(weight, DTensor) for weight in module.policy.parameters())


def interrupted(trainer, module, *_):
    raise KeyboardInterrupt


def test_a_validation_gathers_weights_once(source, tmp_path, monkeypatch):
    gathers = Gathers()
    gathers.watch(monkeypatch)
    module = GRPOModule(
        policy=source,
        sampling=Sampling(group_size=2, max_new_tokens=3),
        evaluation=Sampling(group_size=1, temperature=0.0, max_new_tokens=3),
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )
    data = SceneDataModule(SceneStyle(), train_scenes=4, val_scenes=6, batch_size=2, eval_batch_size=2, num_workers=0)
    settings = {"limit_val_batches": 3, "val_check_interval": 1, "num_sanity_val_steps": 0}
    run = trainer(tmp_path, [gathers], max_steps=2, strategy=FullySharded(), **settings)
    try:
        run.fit(module, data)
        assert gathers.batches == 2 * 3
        assert gathers.gathered == [True] * 6
        # One rollout and one validation in each of two steps.
        assert sorted(gathers.calls) == ["train", "train", "validate", "validate"]
        # After an interruption nothing is left gathered, and the next evaluation gathers again.
        monkeypatch.setattr(gathers, "on_validation_batch_end", interrupted)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run.validate(module, data, verbose=False)
        assert all(isinstance(weight, DTensor) for weight in module.policy.parameters())
        gathers.calls.clear()
        monkeypatch.setattr(gathers, "on_validation_batch_end", partial(Gathers.on_validation_batch_end, gathers))
        run.validate(module, data, verbose=False)
        assert gathers.calls == ["validate"]
        assert all(gathers.gathered)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_a_reference_is_not_copied_from_shards(source, tmp_path):
    module = GRPOModule(
        policy=source,
        sampling=Sampling(group_size=2, max_new_tokens=3),
        evaluation=Sampling(group_size=1, temperature=0.0, max_new_tokens=3),
        loss=GRPO(kl_coef=0.1),
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )
    data = SceneDataModule(SceneStyle(), train_scenes=4, val_scenes=2, batch_size=2, num_workers=0)
    run = trainer(tmp_path, [], max_steps=1, strategy=FullySharded(), limit_val_batches=1, num_sanity_val_steps=0)
    try:
        run.validate(module, data, verbose=False)
        with pytest.raises(UserError, match="make its fit the first run"):
            run.fit(module, data)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class Forwards:
    """Forwards that are no part of another, before which FSDP moves their arguments to a device, as on a GPU."""

    def __init__(self, monkeypatch):
        self.have_arguments, self.moved = [], 0
        original, move = _fsdp_state.FSDPState._root_pre_forward, _fsdp_state._to_kwargs

        def pre_forward(state, module, args, kwargs):
            if state._state_ctx.iter_forward_root is None:
                self.have_arguments.append(bool(args or kwargs))
            # The one device of FSDP's list that has no fixed name.
            with patch.object(torch._C, "_get_privateuse1_backend_name", lambda: "cpu"):
                return original(state, module, args, kwargs)

        def to_kwargs(*arguments):
            self.moved += 1
            return move(*arguments)

        monkeypatch.setattr(_fsdp_state.FSDPState, "_root_pre_forward", pre_forward)
        monkeypatch.setattr(_fsdp_state, "_to_kwargs", to_kwargs)


def validated_and_trained(source, folder):
    """The weights after a validation and two steps, with rollouts and a reference."""
    module = GRPOModule(
        policy=source,
        sampling=Sampling(group_size=2, max_new_tokens=3),
        evaluation=Sampling(group_size=1, temperature=0.0, max_new_tokens=3),
        loss=GRPO(kl_coef=0.1),
        seed=2,
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )
    data = SceneDataModule(SceneStyle(), train_scenes=4, val_scenes=2, batch_size=2, num_workers=0, seed=3)
    settings = {"limit_val_batches": 1, "num_sanity_val_steps": 1, "val_check_interval": 2}
    run = trainer(folder, max_steps=2, strategy=FullySharded(), **settings)
    try:
        run.fit(module, data)
        return {name: value.full_tensor().clone() for name, value in module.state_dict().items()}
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_forwards_whose_arguments_move_to_a_device(source, tmp_path, monkeypatch):
    """On a GPU, torch 2.11 fails in a forward without any."""
    expected = validated_and_trained(source, tmp_path)
    with monkeypatch.context() as patched:
        forwards = Forwards(patched)
        weights = validated_and_trained(source, tmp_path)
    assert all(forwards.have_arguments)
    assert forwards.moved == len(forwards.have_arguments) > 0
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name
