"""Trainings with vLLM: against themselves after a kill, on two processes, over many rollouts."""

import gc
import json
import subprocess
import sys

import psutil
import pytest
import torch

from tests.command import ROOT
from tests.vllm.engines import NEEDS_VLLM, SOURCE, encode, scenes, shared_sampler, tokenizer
from tests.vllm.runs import SAVED_AFTER, STEPS, fit, module
from vr1.rollout import Sampling

pytestmark = [NEEDS_VLLM, pytest.mark.timeout(1200)]


def run(name, folder):
    """A training in a process of its own: its exit status and what it printed last."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.vllm.runs", name, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    return done.returncode, done.stderr[-3000:]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The steps of one process, with one update a rollout."""
    return fit(module(shared_sampler()), tmp_path_factory.mktemp("alone"), steps=3)


def test_gap_and_weights_of_the_correction(alone):
    for step in alone.values():
        assert 0 <= step["gap"] < 1e-4
        assert step["effective"] == pytest.approx(1, abs=1e-3)


def test_validation_between_the_steps(tmp_path):
    made = module(shared_sampler())
    fit(made, tmp_path, steps=2, limit_val_batches=1, val_check_interval=1, num_sanity_val_steps=1)
    assert 0 <= float(made.trainer.callback_metrics["val/map"]) <= 1
    assert float(made.trainer.callback_metrics["perf/synchronise_seconds"]) > 0


def test_a_killed_training_resumes_with_the_same_completions(tmp_path):
    """In the middle of a rollout: its log-probs are in the checkpoint, and the next seeds follow."""
    undisturbed = fit(module(shared_sampler(), updates_per_rollout=2), tmp_path)
    status, _ = run("killed", tmp_path)
    assert status == -9
    status, error = run("resumed", tmp_path)
    assert status == 0, error
    resumed = json.loads((tmp_path / "resumed.json").read_text())
    assert [int(step) for step in resumed] == list(range(SAVED_AFTER + 1, STEPS + 1))
    for step, found in resumed.items():
        expected = undisturbed[int(step)]
        # A busy machine hands the requests to the engine in other batches, whose sums round otherwise.
        assert found["sampler"] == pytest.approx(expected["sampler"], rel=1e-6), step
        if int(step) == SAVED_AFTER + 1:
            assert found["texts"] is None, "this update uses the rollout of the checkpoint"
        else:
            assert found["texts"] == expected["texts"], step
            assert found["reward"] == expected["reward"], step


def test_two_processes_sample_and_reward_what_one_does(alone, tmp_path):
    status, error = run("two", tmp_path)
    assert status == 0, error
    for name in ("ddp", "sharded"):
        ranks = [json.loads((tmp_path / f"{name}{rank}.json").read_text()) for rank in (0, 1)]
        for step, expected in alone.items():
            both = [rank[str(step)] for rank in ranks]
            texts = sorted(text for rank in both for text in rank["texts"])
            assert texts == sorted(expected["texts"]), (name, step)
            assert both[0]["reward"] == pytest.approx(expected["reward"], abs=1e-6), (name, step)


def test_old_image_features_are_noticed(tmp_path):
    status, error = run("old_features", tmp_path)
    assert status != 0
    assert "Encoder cache miss" in error
    assert not (tmp_path / "unnoticed").exists()


def test_memory_is_flat_over_200_rollouts():
    policy, sampler, process = SOURCE.load().eval(), shared_sampler(), psutil.Process()
    sampling, records, sizes = Sampling(group_size=4, max_new_tokens=24), scenes(400, "train"), []
    for number in range(200):
        prompts = encode(records[2 * number : 2 * number + 2])
        with torch.no_grad():
            policy.base.lm_head.weight.mul_(1.0001)
        sampler.synchronise(policy, prompts)
        sampler.sample(policy, prompts, sampling, tokenizer(), draw=number)
        if number % 20 == 19:
            gc.collect()
            sizes.append(process.memory_info().rss / 2**20)
    print("MiB of the process, every 20 rollouts:", " ".join(f"{size:.0f}" for size in sizes))
    assert sizes[-1] < 1.02 * sizes[0]
