"""What a plan counts of a rollout: the completions of a whole optimizer step, as many at a time as the run decodes."""

from dataclasses import replace

import pytest
import torch

from tests.command import CONFIGS
from vr1.cli import main
from vr1.commands.plan.fit import GPUS, capacity
from vr1.commands.plan.needs import needs_of
from vr1.commands.plan.predict import predict
from vr1.commands.plan.shapes import largest_prompts
from vr1.policy import Lora
from vr1.rollout import Sampling, SharedPrefixSampler
from vr1.rollout.memory import rows_that_fit

DEMO = ["--config", str(CONFIGS / "demo.yaml")]


def test_batches_of_a_step_are_read_from_the_settings():
    needs = needs_of([*DEMO, "--trainer.accumulate_grad_batches", "3", "--model.updates_per_rollout", "2"])
    assert (needs.accumulate, needs.updates) == (3, 2)
    schedule = "--trainer.callbacks+=lightning.pytorch.callbacks.GradientAccumulationScheduler"
    needs = needs_of([*DEMO, schedule, "--trainer.callbacks.scheduling", "{0: 2, 4: 8, 6: 5}"])
    assert (needs.accumulate, needs.updates) == (8, 1)
    assert needs_of(["--config", str(CONFIGS / "qlora_a100_40gb.yaml")]).accumulate == 4


def test_a_supervised_term_takes_one_more_completion_in_an_update(needs):
    assert not needs_of(DEMO).supervised
    assert needs_of([*DEMO, "--model.supervised.weight", "0.3"]).supervised
    assert needs.group_size == 4
    with_term, larger = (predict(replace(needs, **settings)) for settings in ({"supervised": True}, {"group_size": 5}))
    assert with_term.moments["policy"] == larger.moments["policy"]
    # Sampling does not know of it.
    assert with_term.moments["rollout"] == predict(needs).moments["rollout"]
    assert with_term.row_tokens == larger.row_tokens


def test_completions_of_all_batches_of_a_step_are_sampled_together(needs):
    one, four, alone = (
        predict(replace(needs, **settings))
        for settings in ({}, {"accumulate": 4}, {"prompts": 8, "policy": replace(needs.policy, lora=Lora(dropout=0.1))})
    )
    assert (one.rows, four.rows, alone.rows) == ((8, 8), (32, 32), (32, 32))
    for part in ("cache", "logits"):
        assert four.moments["rollout"][part] == alone.moments["rollout"][part]
        assert four.moments["rollout"][part] > 3.9 * one.moments["rollout"][part]
    # They are trained on one after the other.
    assert four.moments["policy"] == one.moments["policy"]


def test_the_prefill_of_one_of_several_batches_has_no_graph(needs):
    """Which would be kept until the batch is trained on."""
    one, two = (predict(replace(needs, accumulate=count)).moments["rollout"]["activations"] for count in (1, 2))
    assert one > 1.5 * two


@pytest.mark.parametrize(("max_rows", "rows"), [(32, 32), (31, 16), (9, 8), (1, 4)])
def test_at_most_max_rows_at_a_time(needs, max_rows, rows):
    plan = predict(replace(needs, accumulate=4, sampler=SharedPrefixSampler(max_rows=max_rows)))
    assert plan.rows == (rows, 32)
    together = predict(replace(needs, prompts=rows // 4, sharded=True))
    assert plan.moments["rollout"]["cache"] == pytest.approx(together.moments["rollout"]["cache"], rel=0.02)


@pytest.mark.parametrize("groups", [0.1, 1.5, 2.5, 5.2, 20])
def test_a_gpu_decodes_as_many_rows_as_the_plan_says(needs, monkeypatch, groups):
    """The run asks for the memory that is free after weights, reference and optimizer are in it."""
    needs = replace(needs, accumulate=4, policy=replace(needs.policy, freeze_vision=True))
    sampling = Sampling(group_size=4, max_new_tokens=32)
    everything = predict(needs)
    there = ("weights", "reference", "optimizer", "image features")
    state = sum(everything.moments["rollout"][part] for part in there)
    one = (everything.moments["rollout"]["cache"] + everything.moments["rollout"]["logits"]) / 8
    memory = state + groups * one

    class OnGpu(torch.Tensor):
        device = torch.device("cuda", 0)

    prompts = largest_prompts(needs, 8)
    prompts = replace(prompts, tokens=prompts.tokens.as_subclass(OnGpu))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (memory - state, 0))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    fitting = rows_that_fit(needs.policy.load(), prompts, sampling)
    parts = SharedPrefixSampler().parts(8, 4, fitting)
    assert predict(needs, memory).rows == (4 * max(map(len, parts)), 32)
    assert len(parts) == {0.1: 8, 1.5: 8, 2.5: 4, 5.2: 2, 20: 1}[groups]


def test_features_of_a_frozen_tower_are_kept_for_all_batches_of_a_step(needs):
    assert "image features" not in predict(needs).moments["rollout"]
    frozen = replace(needs, accumulate=3, policy=replace(needs.policy, freeze_vision=True))
    policy, prompts = frozen.policy.load(), largest_prompts(frozen, 2)
    black = torch.zeros(prompts.vision["pixel_values"].shape)
    prompts = replace(prompts, vision={**prompts.vision, "pixel_values": black})
    size = 3 * sum(image.nbytes for image in policy.with_image_features(prompts).image_features)
    moments = predict(frozen).moments
    assert moments["rollout"]["image features"] == moments["policy"]["image features"] == size > 0
    assert "image features" not in moments["update"]
    assert predict(replace(frozen, updates=2)).moments["update"]["image features"] == size


def test_keys_and_values_of_prompts_count_once(needs):
    """The weights that the decoder copies do not depend on the prompts."""
    few, many = (predict(replace(needs, prompts=count)).moments["rollout"] for count in (2, 8))
    assert many["prepared weights"] == few["prepared weights"] > 0


def test_the_command_says_how_many_are_sampled_at_a_time(capsys, monkeypatch):
    needs = [*DEMO, "--trainer.accumulate_grad_batches", "8"]
    assert main(["plan", *needs]) == 0
    printed = capsys.readouterr().out
    assert "completions of a step are sampled at a time; --gpu shows whether they fit" in printed
    step = predict(needs_of(needs)).rows[1]
    monkeypatch.setitem(GPUS, "24gb", 1.5)
    main(["plan", *needs, "--gpu", "24gb"])
    rows = predict(needs_of(needs), capacity("24gb")).rows[0]
    assert 0 < rows < step
    assert f"up to {rows} of the {step} completions of a step are sampled at a time\n" in capsys.readouterr().out
