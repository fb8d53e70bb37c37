"""A server of vLLM on this machine, started by ``vr1 vllm_server``: weights, log-probs, a training of two processes."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import httpx
import pytest

from tests.command import ROOT
from tests.strategies.runs import free_port
from tests.vllm.engines import (
    ADAPTERS,
    GREEDY,
    NEEDS_VLLM,
    NEW_TOKENS,
    PROMPT_TOKENS,
    ROLLOUT,
    SOURCE,
    encode,
    gaps,
    scenes,
    shared_sampler,
    tokenizer,
    train,
    workload,
)
from tests.vllm.runs import fit, module
from vr1.errors import UserError
from vr1.policy import Lora
from vr1.rollout import VLLMSampler

pytestmark = [NEEDS_VLLM, pytest.mark.timeout(1200)]


@contextmanager
def server(folder, *arguments):
    """The address of a server that runs as long as the context."""
    url = f"http://127.0.0.1:{free_port()}"
    configs = ["--config", "configs/demo.yaml", "--config", "configs/vllm.yaml"]
    lengths = ["--model.max_prompt_tokens", str(PROMPT_TOKENS), "--model.evaluation.max_new_tokens", str(NEW_TOKENS)]
    sizes = ["--model.policy.max_pixels", str(SOURCE.max_pixels), "--model.sampler.cache_gib", "0.25"]
    command = [*configs, *lengths, *sizes, "--model.sampler.url", url, *arguments]
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vr1", "vllm_server", *command],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "VLLM_API_KEY": "secret"},
        )
        try:
            end = time.monotonic() + 600
            while not _answers(url):
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < end, log.read_text()[-3000:]
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait(60)


def _answers(url):
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module", autouse=True)
def token():
    os.environ["VLLM_API_KEY"] = "secret"
    yield
    del os.environ["VLLM_API_KEY"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with server(tmp_path_factory.mktemp("whole")) as url:
        yield url


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    with server(tmp_path_factory.mktemp("adapted"), "--model.policy.lora.rank", "5") as url:
        yield url


def connected(url, source=SOURCE):
    sampler = VLLMSampler(url=url, max_sequences=64)
    sampler.setup(workload(source))
    return sampler


def gap(sampler, policy, prompts, draw=1):
    rollout = sampler.sample(policy, prompts, ROLLOUT, tokenizer(), draw)
    mean = float(gaps(policy, prompts, rollout).mean())
    sampler.check_gap(mean, ROLLOUT)
    return mean


def test_greedy_answers_equal_those_of_an_engine_in_the_process(whole):
    policy, prompts = SOURCE.load().eval(), encode(scenes(32))
    texts = []
    for sampler in (connected(whole), shared_sampler()):
        sampler.synchronise(policy, prompts)
        texts.append(sampler.sample(policy, prompts, GREEDY, tokenizer()).texts)
    assert texts[0] == texts[1]


def test_weights_after_optimizer_steps_and_stale_ones_before(whole):
    policy, sampler, prompts = SOURCE.load().eval(), connected(whole), encode(scenes(4))
    sampler.synchronise(policy, prompts)
    start = gap(sampler, policy, prompts)
    train(policy, rate=1e-4)
    with pytest.raises(UserError, match=r"log-probs of vLLM and of the policy differ by .* in this rollout"):
        gap(sampler, policy, prompts)
    sampler.synchronise(policy, prompts)
    after = gap(sampler, policy, prompts)
    print(f"server: mean difference {start:.2e}, after 3 optimizer steps of all weights {after:.2e}")
    assert max(start, after) < 1e-4


def test_adapters_after_optimizer_steps(adapted):
    policy, sampler, prompts = ADAPTERS.load().eval(), connected(adapted, ADAPTERS), encode(scenes(4))
    sampler.synchronise(policy, prompts)
    start = gap(sampler, policy, prompts)
    train(policy, rate=1e-3)
    with pytest.raises(UserError, match="in this rollout"):
        gap(sampler, policy, prompts)
    sampler.synchronise(policy, prompts)
    after = gap(sampler, policy, prompts)
    print(f"server: mean difference with adapters {start:.2e}, trained {after:.2e}")
    assert max(start, after) < 1e-4


def test_a_base_of_4_bits(adapted):
    source = replace(SOURCE, quantize="nf4", lora=Lora(rank=5, alpha=10))
    policy, sampler, prompts = source.load().eval(), connected(adapted, source), encode(scenes(4))
    sampler.synchronise(policy, prompts)
    assert gap(sampler, policy, prompts) < 5e-4


def test_a_server_without_room_for_adapters_is_noticed(whole):
    sampler, policy, prompts = connected(whole, ADAPTERS), ADAPTERS.load().eval(), encode(scenes(2))
    with pytest.raises(UserError, match=r"/v1/load_lora_adapter failed with \d+: "):
        sampler.synchronise(policy, prompts)


def test_without_the_token(whole, monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY")
    with pytest.raises(UserError, match="the server asks for a token; set VLLM_API_KEY"):
        connected(whole)


def test_two_processes_with_one_server_reward_what_one_does(whole, tmp_path):
    alone = fit(module(VLLMSampler(url=whole, max_sequences=64)), tmp_path / "alone", steps=3)
    done = subprocess.run(
        [sys.executable, "-m", "tests.vllm.runs", "two_served", str(tmp_path), whole],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"served{rank}.json").read_text()) for rank in (0, 1)]
    for step, expected in alone.items():
        both = [rank[str(step)] for rank in ranks]
        texts = sorted(text for rank in both for text in rank["texts"])
        assert texts == sorted(expected["texts"]), step
        assert both[0]["reward"] == pytest.approx(expected["reward"], abs=1e-6), step
        assert both[0]["gap"] < 1e-4
