"""Accumulated gradients with FSDP2 on two processes against one, and resumed within an optimizer step."""

from pathlib import Path

import pytest
import torch

from tests.modules.test_accumulation import Counted, SaveWithinStep
from tests.strategies import runs
from tests.strategies.test_fully_sharded import assert_alike, assert_rows, weights
from vr1.policy.loading import PolicySource

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
# Two batches a step; the checkpoint lies within the second step, or within the second update from the first rollout.
BATCHES = 3


def train(source, out, name, updates=1, save=False, resume=None, **settings):
    made = runs.module(source, updates_per_rollout=updates, sampler=Counted())
    callbacks = [runs.Rows(out / name), *([SaveWithinStep(out / f"{name}.ckpt", BATCHES, "batch")] if save else [])]
    settings = {"accumulate_grad_batches": 2, "callbacks": callbacks, "enable_checkpointing": save} | settings
    runs.train(made, out / name, steps=2, ckpt_path=resume, **settings)
    torch.save(made.sampler.calls, out / name / f"calls{made.global_rank}")


def on_two(source, out):
    for updates in (1, 2):
        train(source, out, f"two_{updates}", updates, save=True, **runs.two())
        train(source, out, f"two_on_{updates}", updates, resume=out / f"two_{updates}.ckpt", **runs.two())
    train(source, out, "shards", save=True, **runs.two(sharded_checkpoints=True))
    train(source, out, "shards_on", resume=out / "shards.ckpt", **runs.two(sharded_checkpoints=True))
    train(source, out, "from_one", resume=out / "one_1.ckpt", **runs.two())


@pytest.fixture(scope="module")
def out(tiny_model, tmp_path_factory):
    folder, source = Path(tmp_path_factory.mktemp("accumulated")), PolicySource(path=str(tiny_model))
    for updates in (1, 2):
        train(source, folder, f"one_{updates}", updates, save=True)
    runs.start_two(source, folder, on_two)
    return folder


@pytest.mark.parametrize("updates", [1, 2])
def test_two_processes_are_one(out, updates):
    two, one = out / f"two_{updates}", out / f"one_{updates}"
    assert_alike(weights(two / "end.ckpt"), weights(one / "end.ckpt"))
    assert_rows(runs.rows(two)[1::2], runs.rows(one)[1::2])
    assert [torch.load(two / f"calls{rank}") for rank in (0, 1)] == [[4] * (3 - updates)] * 2


@pytest.mark.parametrize("updates", [1, 2])
def test_resumed_within_a_step(out, updates):
    whole, resumed = weights(out / f"two_{updates}" / "end.ckpt"), weights(out / f"two_on_{updates}" / "end.ckpt")
    assert_alike(resumed, whole)
    assert len(runs.rows(out / f"two_on_{updates}")) == 4 - BATCHES


def test_resumed_from_shards_and_from_one_process(out):
    whole = weights(out / "two_1" / "end.ckpt")
    assert_alike(weights(out / "shards" / "end.ckpt"), whole)
    assert_alike(weights(out / "shards_on" / "end.ckpt"), whole)
    assert_alike(weights(out / "from_one" / "end.ckpt"), whole)
