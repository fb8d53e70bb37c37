"""The client of a vLLM server, against a server in this process that answers as vLLM 0.32 does and notes what it gets.

Nothing here needs vLLM; the tests with a real server are in tests/vllm.
"""

import base64
import io
import json
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vr1.errors import UserError
from vr1.policy import Lora
from vr1.prompts import PromptEncoder
from vr1.rollout import Sampling, VLLMSampler, Workload
from vr1.rollout.vllm import served
from vr1.rollout.vllm.served import ServedEngine, Server, folder_for, shared_folder
from vr1.rollout.vllm.weights import all_weights

PATHS = [
    *("/collective_rpc", "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache"),
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
]


class Recorded:
    """A server that notes every request, and reads the folders that it is given while they are there."""

    def __init__(self):
        self.requests, self.weights, self.adapters, self.headers = [], [], [], []
        self.paths, self.version, self.room, self.token, self.busy, self.fails = PATHS, "0.32.0", 4096, None, 0, ""
        self.encoder = None

    def answer(self, path, content):
        self.requests.append((path, content))
        if path == self.fails:
            return 500, {"error": "out of\nmemory"}
        if path == "/version":
            return 200, {"version": self.version}
        if path == "/openapi.json":
            return 200, {"paths": {path: {} for path in self.paths}}
        if path == "/v1/models":
            return 200, {"data": [{"id": "base", "max_model_len": self.room}]}
        if path == "/reset_prefix_cache":
            self.busy -= 1
            return 200, {"success": self.busy < 0}
        if path == "/collective_rpc" and content["method"] == "reload_weights":
            files = sorted(Path(content["kwargs"]["weights_path"]).glob("*.safetensors"))
            self.weights.append([load_file(file) for file in files])
        if path == "/v1/load_lora_adapter":
            folder = Path(content["lora_path"])
            self.adapters.append((content["lora_name"], load_file(folder / "adapter_model.safetensors")))
        if path == "/v1/chat/completions":
            return 200, self.completion(content)
        return 200, None

    def completion(self, content):
        """A completion of three tokens that depend on the seed."""
        _, _, text = self.asked(content)
        prompt = next(tokens for instruction, tokens in self.encoder.items() if instruction == text)
        tokens = [content["seed"] % 50, 7, content["stop_token_ids"][0]]
        log_probs = [{"token": "", "logprob": -0.5 * number} for number in range(1, 4)]
        return {
            "prompt_token_ids": prompt,
            "choices": [{"token_ids": tokens, "logprobs": {"content": log_probs}}],
        }

    @staticmethod
    def asked(content):
        (message,) = content["messages"]
        *images, text = message["content"]
        assert message["role"] == "user"
        return images, content["seed"], text["text"]


@pytest.fixture
def server():
    recorded = Recorded()

    class Handler(BaseHTTPRequestHandler):
        def _handle(self):
            length = int(self.headers.get("Content-Length") or 0)
            content = json.loads(self.rfile.read(length)) if length else None
            status, answer = 401, None
            recorded.headers.append(self.headers.get("Authorization"))
            if recorded.token is None or self.headers.get("Authorization") == f"Bearer {recorded.token}":
                status, answer = recorded.answer(self.path, content)
            body = b"" if answer is None else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _handle  # noqa: N815 - the names that http.server calls

        def log_message(self, *_):
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=listening.serve_forever, daemon=True).start()
    recorded.url = f"http://127.0.0.1:{listening.server_port}"
    yield recorded
    listening.shutdown()
    listening.server_close()


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


def workload(source, **changes):
    settings = {"dtype": "float32", "max_prompt_tokens": 256, "max_new_tokens": 64} | changes
    return Workload(source=source, encoder=PromptEncoder(source.processor(), source.family(), 256), **settings)


def connected(server, source, **settings):
    sampler = VLLMSampler(url=server.url, max_sequences=4, **settings)
    sampler.setup(workload(source))
    return sampler


def refusal(server, source, **settings):
    with pytest.raises(UserError) as raised:
        connected(server, source, **settings)
    message = str(raised.value)
    assert "\n" not in message
    return message


def names(server):
    return [
        content["method"] if path == "/collective_rpc" else path.removeprefix("/v1/")
        for path, content in server.requests
        if path not in ("/version", "/openapi.json", "/v1/models")
    ]


RESET = ["/reset_encoder_cache", "/reset_mm_cache", "/reset_prefix_cache"]


def engine(server, tmp_path):
    return ServedEngine(Server(server.url, 4), tmp_path, parallel=4)


def test_all_weights_are_written_where_the_server_reads_them(server, source, tmp_path, monkeypatch):
    monkeypatch.setattr(served, "_FILE_BYTES", 20_000)
    policy = source.load()
    engine(server, tmp_path).load_weights(all_weights(policy, torch.float32))
    assert names(server) == ["reload_weights", *RESET]
    (files,) = server.weights
    assert len(files) > 1, "several files of a limited size"
    got = {name: value for file in files for name, value in file.items()}
    expected = policy.base.state_dict()
    assert got.keys() == expected.keys(), "a tied head too"
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    assert list(tmp_path.iterdir()) == [], "nothing is left"


def test_each_adapter_has_a_new_name_and_replaces_the_one_before(server, source, tmp_path):
    policy, made = replace(source, lora=Lora(rank=4)).load(), engine(server, tmp_path)
    made.load_adapter(policy)
    with torch.no_grad():
        for name, value in policy.named_parameters():
            if "lora_B" in name:
                value.add_(1.0)
    made.load_adapter(policy)
    calls = ["load_lora_adapter", *RESET, "unload_lora_adapter", "load_lora_adapter", *RESET]
    assert names(server) == calls
    (first, before), (second, after) = server.adapters
    assert first != second
    assert dict(server.requests)["/v1/unload_lora_adapter"] == {"lora_name": first}
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == [name for name in before if "lora_B" in name] != []
    assert engine(server, tmp_path)._name != made._name, "another training uses other names"


def test_a_busy_server_is_asked_again_and_given_up_in_the_end(server, source, tmp_path, monkeypatch):
    server.busy = 2
    weights = [("a", torch.zeros(1))]
    engine(server, tmp_path).load_weights(weights)
    assert names(server).count("/reset_prefix_cache") == 3
    server.busy = 10**9
    monkeypatch.setattr(served, "_RESET_SECONDS", 0.2)
    with pytest.raises(UserError, match="does not empty its cache of prompts: others use it too"):
        engine(server, tmp_path).load_weights(weights)


def test_completions_and_what_is_asked_for_them(server, source, records):
    policy, sampler = source.load().eval(), connected(server, source)
    prompts = sampler._work.encoder(records[:2])
    rows = (prompts.tokens[row][prompts.mask[row]].tolist() for row in range(2))
    server.encoder = dict(zip(prompts.instructions, rows, strict=True))
    sampler._engine = engine(server, Path())
    sampling = Sampling(group_size=3, temperature=0.7, top_p=0.9, max_new_tokens=9)
    rollout = sampler.sample(policy, prompts, sampling, sampler._work.encoder.processor.tokenizer, draw=5)
    asked = [content for path, content in server.requests if path == "/v1/chat/completions"]
    assert len(asked) == 6
    assert len({content["seed"] for content in asked}) == 6
    for content in asked:
        expected = {"model": "base", "n": 1, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "max_tokens": 9}
        assert expected.items() <= content.items()
        assert content["stop_token_ids"] == list(policy.eos_tokens)
        assert content["logit_bias"] == {str(token): -100.0 for token in policy.forbidden_tokens}
        (image,), _, text = server.asked(content)
        record = records[prompts.instructions.index(text)]
        written = Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].partition(",")[2])))
        assert (np.asarray(written) == np.asarray(record.image)).all(), "the image is sent without loss"
    assert rollout.tokens.shape == (2, 3, 3)
    by_seed = {content["seed"] % 50 for content in asked}
    assert set(rollout.tokens[..., 0].flatten().tolist()) == by_seed
    assert rollout.log_probs[1, 2].tolist() == [-0.5, -1.0, -1.5]
    assert rollout.finished.all()


def test_answers_keep_the_order_of_the_requests(server, source, records):
    """Requests run beside each other and end in any order."""
    policy, sampler = source.load().eval(), connected(server, source)
    prompts = sampler._work.encoder(records[:2])
    rows = (prompts.tokens[row][prompts.mask[row]].tolist() for row in range(2))
    server.encoder = dict(zip(prompts.instructions, rows, strict=True))
    sampler._engine = engine(server, Path())
    tokenizer = sampler._work.encoder.processor.tokenizer
    first = [sampler.sample(policy, prompts, Sampling(group_size=8), tokenizer, draw=1).tokens for _ in range(3)]
    assert all(torch.equal(tokens, first[0]) for tokens in first[1:])


def test_a_prompt_that_the_server_reads_otherwise(server, source, records):
    policy, sampler = source.load().eval(), connected(server, source)
    prompts = sampler._work.encoder(records[:1])
    server.encoder = {prompts.instructions[0]: [1, 2, 3]}
    sampler._engine = engine(server, Path())
    with pytest.raises(UserError, match=r"vLLM reads the prompt of .* as 3 tokens, and the policy as"):
        sampler.sample(policy, prompts, Sampling(group_size=2), sampler._work.encoder.processor.tokenizer)


def test_the_server_is_checked_before_any_weights_are_loaded(server, source):
    connected(server, source)
    server.room = 319
    assert "the server takes 319 tokens, and prompt and completion have up to 320" in refusal(server, source)
    server.version = "0.40.1"
    assert "the vLLM 0.40.1 of this server was never tested with vr1" in refusal(server, source)
    server.room = 320
    connected(server, source, untested_version=True)
    server.version, server.paths = "0.32.0", PATHS[:4]
    connected(server, source)
    message = refusal(server, replace(source, lora=Lora(rank=4)))
    assert "the server has no /v1/load_lora_adapter, /v1/unload_lora_adapter; start it with" in message
    server.paths = []
    assert "the server has no /collective_rpc, /reset_prefix_cache" in refusal(server, source)


def test_a_server_with_a_token(server, source, monkeypatch):
    server.token = "secret"
    assert "the server asks for a token; set VLLM_API_KEY to it" in refusal(server, source)
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    connected(server, source)
    assert server.headers[-1] == "Bearer secret"


def test_no_server_and_a_server_that_fails(server, source, tmp_path):
    with pytest.raises(UserError, match=r"url=http://127\.0\.0\.1:9: no server answers there .*; start it with"):
        VLLMSampler(url="http://127.0.0.1:9/").setup(workload(source))
    server.fails = "/collective_rpc"
    with pytest.raises(UserError, match=r"/collective_rpc failed with 500: .*out of"):
        engine(server, tmp_path).load_weights([("a", torch.zeros(1))])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "is no address; write it as http://127.0.0.1:8000"),
        ({"url": "http://gpu2:8000"}, "is another machine, which gets the weights by files; set model.sampler.folder"),
        ({"url": "http://gpu2:8000", "folder": "."}, "set VLLM_API_KEY to the same secret"),
        ({"url": "http://127.0.0.1:8000", "folder": "nowhere"}, "folder=nowhere is no folder"),
        ({"url": "http://127.0.0.1:8000", "sleep": True}, "sleep=true with a url"),
        ({"folder": "."}, "set model.sampler.url too"),
    ],
)
def test_settings_of_a_server(settings, message):
    with pytest.raises(UserError, match=message):
        VLLMSampler(**settings)


def test_another_machine_with_token_and_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    sampler = VLLMSampler(url="http://gpu2:8000", folder=str(tmp_path))
    assert sampler.memory(source=None, dtype="float32", parameters=1) == ({}, {}), "its memory is on the other machine"


def test_weights_go_to_memory_where_they_fit(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert folder_for(2**60) == tmp_path


def test_a_shared_folder_is_there_as_long_as_it_is_needed(tmp_path):
    with shared_folder(tmp_path) as folder:
        assert folder.parent == tmp_path
        assert folder.is_dir()
    assert not folder.exists()
    with pytest.raises(UserError, match="too small"), shared_folder(tmp_path) as folder:
        raise UserError("too small")
    assert not folder.exists()
