"""``vr1 vllm_server``: the command of vLLM that it starts. A real server is started in tests/vllm."""

import json
import os
import shlex
from types import SimpleNamespace

import pytest

from vr1.cli import main
from vr1.rollout.vllm import checks
from vr1.rollout.vllm.checks import InstalledVLLM

BASE = ["--config", "configs/demo.yaml", "--config", "configs/vllm.yaml"]
URL = ["--model.sampler.url", "http://127.0.0.1:8123"]


@pytest.fixture(autouse=True)
def vllm_present(monkeypatch):
    registry = SimpleNamespace(get_supported_archs=lambda: ["Qwen2_5_VLForConditionalGeneration"])
    monkeypatch.setattr(checks, "import_vllm", lambda: SimpleNamespace(ModelRegistry=registry))
    monkeypatch.setattr(checks, "find_vllm", lambda: InstalledVLLM(distribution="vllm", version="0.32.1"))
    monkeypatch.setattr(checks, "engine_device", lambda: "cpu")
    monkeypatch.setattr(checks, "adapter_rank", lambda rank: 16 if rank <= 16 else None)
    monkeypatch.setattr("vr1.rollout.vllm.sampler.adapter_rank", lambda rank: 16)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


def printed(capsys, *arguments):
    assert main(["vllm_server", "--print", *BASE, *URL, *arguments]) == 0
    return shlex.split(capsys.readouterr().out)


def value(words, option):
    return words[words.index(option) + 1]


def test_the_server_has_what_the_training_needs(capsys):
    words = printed(capsys, "--model.evaluation.max_new_tokens", "300", "--model.max_prompt_tokens", "700")
    assert {"VLLM_SERVER_DEV_MODE=1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"} <= set(words)
    assert words[words.index("vllm") :][:2] == ["vllm", "serve"]
    assert value(words, "--max-model-len") == "1000", "the longest prompt and the longest completion, of an evaluation"
    assert value(words, "--host") == "127.0.0.1"
    assert value(words, "--port") == "8123"
    assert value(words, "--logprobs-mode") == "processed_logprobs"
    assert value(words, "--worker-extension-cls") == "vr1.rollout.vllm.worker.WorkerExtension"
    assert json.loads(value(words, "--mm-processor-kwargs")) == {"size": {"shortest_edge": 3136, "longest_edge": 12544}}
    assert "--enforce-eager" in words
    assert "--no-enable-sleep-mode" in words
    assert "--enable-lora" not in words


def test_adapters_and_further_options(capsys):
    options = '{"tensor_parallel_size": 2}'
    words = printed(capsys, "--model.policy.lora.rank", "12", "--model.sampler.options", options)
    assert value(words, "--max-lora-rank") == "16"
    assert "--enable-lora" in words
    assert value(words, "--tensor-parallel-size") == "2"


def test_it_takes_the_place_of_this_process(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments))
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "0")
    main(["vllm_server", *BASE, *URL])
    ((_, words, environment),) = started
    assert words[1:3] == ["-m", "vllm.entrypoints.launchers.api_server.entry"]
    assert value(words, "--port") == "8123"
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert environment["VLLM_NO_USAGE_STATS"] == "0", "what the user has set stays"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "configs/demo.yaml"], "this training does not use a server; add `--config configs/vllm.yaml"),
        (BASE, "this training does not use a server"),
        ([*BASE, "--model.sampler.url", "http://0.0.0.0:8000"], "is another machine"),
        ([*BASE, *URL, "--model.sampler.cache_gib", "0.0001"], "cannot hold one sequence"),
        ([*BASE, *URL, "--model.policy.lora.rank", "999"], "vLLM holds no adapters of this rank"),
    ],
)
def test_errors(arguments, message, capsys):
    assert main(["vllm_server", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
