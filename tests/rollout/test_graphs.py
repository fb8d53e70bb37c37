"""Decoding steps that are replayed as graphs, by an emulation on a CPU, against eager steps and transformers."""

import gc
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.policy.tiny_models import source_of
from tests.rollout.emulated_graphs import EmulatedCapture, HostReadError
from vr1.policy import Lora
from vr1.prompts import PromptEncoder
from vr1.rollout import Sampling, SharedPrefixSampler, generate, sample_token, shared
from vr1.rollout.cache import StaticGroupCache
from vr1.rollout.graphs import CudaCapture, StepGraphs
from vr1.rollout.rows import SampledRows

GROUP, LIMIT = 3, 60
SAMPLED, NUCLEUS, GREEDY = {}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.0}


def loaded(source, **changes):
    """A policy whose choices are distinct, with adapters that change something, and completions of many lengths."""
    torch.manual_seed(1)
    policy = replace(source, **changes).load().eval()
    head = policy.base.lm_head
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape) * 0.2)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    policy.base.generation_config.eos_token_id = list(range(300, 306))
    return policy


def encoder_of(source):
    return PromptEncoder(source.processor(), source.family(), 1024)


def both(policy, prompts, sampling, tokenizer, capture):
    """The rollout without graphs, and with them."""
    graphs = StepGraphs(capture)
    eager = generate(policy, prompts, sampling, tokenizer, draw=4)
    return eager, generate(policy, prompts, sampling, tokenizer, draw=4, graphs=graphs)


def assert_same(found, expected):
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.mask, expected.mask)
    assert torch.equal(found.finished, expected.finished)
    torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-4, rtol=0)


@pytest.fixture(params=["qwen2_5_vl", "qwen2_vl", "qwen3_vl", "internvl", "glm4v", "griffon_g"])
def family(request, source, tmp_path):
    return source_of(request.param, source, tmp_path)


@pytest.mark.parametrize(
    ("lora", "settings"), [(None, SAMPLED), (Lora(rank=2), NUCLEUS), (Lora(rank=2), GREEDY)], ids=str
)
@torch.no_grad()
def test_replays_give_the_tokens_of_eager_steps_and_of_transformers(family, records, lora, settings):
    policy, encoder = loaded(family, lora=lora), encoder_of(family)
    prompts, sampling = encoder(records), Sampling(group_size=GROUP, max_new_tokens=LIMIT, **settings)
    capture = EmulatedCapture()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        eager, replayed = both(policy, prompts, sampling, encoder.processor.tokenizer, capture)
    assert_same(replayed, eager)
    assert capture.replayed > 20
    for row, record in enumerate(records):
        uniform = np.random.default_rng([4, record.image_id]).random((GROUP, LIMIT))
        for index in range(GROUP):
            tokens = replayed.tokens[row, index][replayed.mask[row, index]]
            logits = teacher_forced(policy, encoder([record]), tokens)
            expected = sample_token(logits, sampling, torch.from_numpy(uniform[index, : len(tokens)]))[0]
            assert torch.equal(tokens, expected)


def teacher_forced(policy, prompt, tokens):
    """Logits of transformers' forward at each token of one completion."""
    whole = torch.cat([prompt.tokens, tokens[None]], dim=1)
    types = torch.cat([prompt.token_types, torch.zeros(1, len(tokens), dtype=torch.long)], dim=1)
    named = {prompt.types_name: types} if prompt.types_name else {}
    output = policy.network(input_ids=whole, attention_mask=torch.ones_like(whole), **named, **prompt.vision)
    logits = output.logits[0, -len(tokens) - 1 : -1].float()
    logits[:, policy.forbidden_tokens] = -torch.inf
    return logits


@pytest.mark.parametrize("check_every", [1, 16])
@torch.no_grad()
def test_captures_again_when_the_cache_grows_and_when_rows_leave(source, encoder, records, check_every):
    policy = loaded(source)
    sampling = Sampling(group_size=8, max_new_tokens=200)
    uniform = torch.rand(24, 200, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    capture = EmulatedCapture()
    prefix = policy.prefill(encoder(records))
    policy.base.generation_config.eos_token_id = list(range(300, 320))
    with torch.inference_mode():
        eager = shared.decode_shared(policy, prefix, sampling, uniform, 1)
        found = shared.decode_shared(policy, prefix, sampling, uniform, check_every, graphs=StepGraphs(capture))
    assert int(eager.lengths.max()) > 140, "no completion fills the cache"
    assert int((eager.lengths < 120).sum()) >= 18, "too few rows leave"
    for ours, theirs in zip(found[:3], eager[:3], strict=True):
        assert torch.equal(ours, theirs)
    assert capture.captured >= 3
    assert capture.warm >= 2 * capture.captured


@pytest.mark.parametrize("autocast", [False, True])
@torch.no_grad()
def test_replays_in_half_precision(source, encoder, records, autocast):
    policy = loaded(source, **({} if autocast else {"dtype": "bfloat16"}), lora=Lora(rank=2))
    sampling = Sampling(group_size=GROUP, max_new_tokens=40)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False):
        capture = EmulatedCapture()
        eager, replayed = both(policy, encoder(records), sampling, encoder.processor.tokenizer, capture)
    assert torch.equal(replayed.tokens, eager.tokens)
    assert capture.replayed > 20


class HostSlot(StaticGroupCache):
    """Counts tokens on the host: a graph repeats the number that it was captured with."""

    def _store(self, layer, own):
        if layer == 0:
            self.slot.fill_(int(self.slot) if not hasattr(self, "tokens") else self.tokens - 1)
            self.tokens = getattr(self, "tokens", 0) + 1
        return super()._store(layer, own)


class HostMask(StaticGroupCache):
    """Hides what is beyond a number of tokens that the host counts."""

    def _hide(self, scores, window):
        self.calls = getattr(self, "calls", 0) + 1
        scores[..., self._prompt_width + (self.calls + 1) // 2 :] = -torch.inf


class HostPosition(SampledRows):
    """Counts positions on the host."""

    def sample(self, logits):
        super().sample(logits)
        self.tokens = getattr(self, "tokens", 0) + 1
        self.start = getattr(self, "start", self.position.clone())
        self.position.copy_(self.start + self.tokens - 1)


class HostRead(SampledRows):
    """Looks at the counter on the host."""

    def sample(self, logits):
        assert int(self._count) >= 0
        super().sample(logits)


class NewCounter(SampledRows):
    """Puts a new tensor in the place of the one that a graph knows."""

    def sample(self, logits):
        super().sample(logits)
        self.position = self.position + 0


@pytest.mark.parametrize(
    ("name", "faulty", "reason"),
    [
        ("StaticGroupCache", HostSlot, "replayed steps (differ|sample or count other)"),
        ("StaticGroupCache", HostMask, "replayed steps differ from eager ones by"),
        ("SampledRows", HostPosition, "replayed steps (differ|sample or count other)"),
        ("SampledRows", NewCounter, "memory that was freed"),
        ("SampledRows", HostRead, "cannot be captured .HostReadError: operation not permitted"),
    ],
)
@torch.no_grad()
def test_a_wrong_step_is_noticed_and_changes_no_completion(source, encoder, prompts, monkeypatch, name, faulty, reason):
    policy, tokenizer = loaded(source), encoder.processor.tokenizer
    sampling, capture = Sampling(group_size=GROUP, max_new_tokens=40), EmulatedCapture()
    graphs = StepGraphs(capture)
    expected = generate(policy, prompts, sampling, tokenizer, draw=4)
    monkeypatch.setattr(shared, name, faulty)
    with pytest.warns(UserWarning, match=reason) as caught:
        found = generate(policy, prompts, sampling, tokenizer, draw=4, graphs=graphs)
    assert len(caught) == 1
    assert_same(found, expected)
    # Later rollouts do not try it again.
    before = capture.warm
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(generate(policy, prompts, sampling, tokenizer, draw=4, graphs=graphs), expected)
    assert capture.warm == before


@torch.no_grad()
def test_short_rollouts_are_not_captured(source, encoder, prompts):
    capture = EmulatedCapture()
    sampling = Sampling(group_size=2, max_new_tokens=8)
    both(loaded(source), prompts, sampling, encoder.processor.tokenizer, capture)
    assert capture.warm == 0


def test_graphs_are_for_gpus(source, encoder, prompts, monkeypatch):
    monkeypatch.setattr(CudaCapture, "warm_up", lambda *_: pytest.fail("a graph on a CPU"))
    sampling = Sampling(group_size=2, max_new_tokens=40)
    policy, tokenizer = source.load().eval(), encoder.processor.tokenizer
    rollouts = [
        SharedPrefixSampler(graphs=setting).sample(policy, prompts, sampling, tokenizer) for setting in ("auto", "off")
    ]
    assert torch.equal(rollouts[0].tokens, rollouts[1].tokens)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert [SharedPrefixSampler().captures(device) for device in (cuda, cpu)] == [True, False]
    assert not SharedPrefixSampler(graphs="off").captures(cuda)


class FakeGraph:
    """Notes what is called of a CUDA graph."""

    def __init__(self, calls):
        self.calls, self.number = calls, 1 + sum(call.startswith("begin") for call in calls)

    def capture_begin(self, pool=None, capture_error_mode="global"):
        self.calls.append(f"begin {self.number} pool {pool} {capture_error_mode} gc {gc.isenabled()}")

    def capture_end(self):
        self.calls.append(f"end {self.number}")
        if "failed" in self.calls:
            raise RuntimeError("capture was invalidated")

    def pool(self):
        return f"of {self.number}"

    def replay(self):
        self.calls.append(f"replay {self.number}")


class FakeStream:
    """Notes what is called of a stream of CUDA."""

    def __init__(self, calls, name="side"):
        self.calls, self.name = calls, name

    def wait_stream(self, other):
        self.calls.append(f"{self.name} waits for {other.name}")

    def __enter__(self):
        self.calls.append("enter")

    def __exit__(self, *_):
        self.calls.append("exit")


@pytest.fixture
def calls(monkeypatch):
    """What is called of ``torch.cuda``."""
    calls = []
    main = FakeStream(calls, "main")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: FakeGraph(calls))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: FakeStream(calls))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("synchronize"))
    return calls


def test_a_capture_calls_cuda_in_the_documented_order(calls):
    def step():
        calls.append("step")
        return torch.ones(1)

    capture = CudaCapture()
    capture.warm_up(step)
    assert calls == ["side waits for main", "enter", "step", "exit", "main waits for side"]
    calls.clear()
    replays = [capture.capture(step) for _ in range(2)]
    around = ["synchronize", "side waits for main", "enter"]
    one = [*around, "begin 1 pool None thread_local gc False", "step", "end 1", "exit", "main waits for side"]
    assert calls[:8] == one
    # The second graph takes over the memory of the first.
    assert calls[8 + 3] == "begin 2 pool of 1 thread_local gc False"
    assert gc.isenabled()
    calls.clear()
    assert torch.equal(replays[1](), torch.ones(1))
    assert calls == ["replay 2"]


def test_a_failed_capture_is_ended_and_says_why(calls):
    def step():
        calls.append("failed")
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="operation not permitted"):
        CudaCapture().capture(step)
    assert calls[-2:] == ["end 1", "exit"]
    assert gc.isenabled()


def test_the_emulation_is_as_strict_as_a_graph():
    capture, total = EmulatedCapture(), torch.zeros(3)

    def add(number):
        def step():
            total.add_(number)
            return total * 2

        return step

    replay = capture.capture(add(2))
    assert total.tolist() == [0, 0, 0], "capturing runs nothing"
    assert [replay().tolist() for _ in range(2)] == [[4, 4, 4], [8, 8, 8]]
    for read in (lambda: float(total.sum()), lambda: total.tolist(), lambda: total.nonzero(), lambda: total[total > 0]):
        with pytest.raises(HostReadError):
            capture.capture(read)

    def reads_a_copy():
        return kept[0] + 1

    kept = [torch.ones(2)]
    replay = capture.capture(reads_a_copy)
    assert replay().tolist() == [2, 2]
    kept.clear()
    with pytest.raises(RuntimeError, match="freed"):
        replay()
