"""Rollouts by the kernels of a CPU against those by torch's operators, and what is done where they cannot be used."""

import warnings
from dataclasses import replace

import pytest
import torch

from tests.policy.tiny_models import source_of
from tests.rollout.caches import LEAVING, noted_caches
from tests.rollout.test_graphs import assert_same, encoder_of, loaded
from vr1.cpu_kernels import decoding
from vr1.cpu_kernels.library import compiler, load_library
from vr1.policy import Lora
from vr1.rollout import Sampling, generate, shared
from vr1.rollout.cache import GroupCache
from vr1.rollout.decoder import make_decoder
from vr1.rollout.kernels import Kernels, check, cpu
from vr1.rollout.kernels.cpu import CpuDecoder, CpuKernelCache, network_of

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C compiler")


@pytest.fixture
def family(request, source, tmp_path):
    return source_of(request.param, source, tmp_path)


@pytest.fixture
def used(monkeypatch):
    return noted_caches(monkeypatch, CpuKernelCache)


@needs_compiler
@pytest.mark.parametrize(
    ("family", "changes", "sampling"),
    [
        ("qwen2_5_vl", {}, {}),
        ("qwen2_5_vl", {"lora": Lora(rank=2)}, {"temperature": 0.7}),
        ("qwen2_vl", {}, {"temperature": 0.7, "top_p": 0.9}),
        ("qwen3_vl", {"lora": Lora(rank=2)}, {}),
        ("internvl", {}, {"temperature": 0.0}),
    ],
    ids=["all weights", "LoRA", "nucleus", "LoRA of Qwen3-VL", "greedy"],
    indirect=["family"],
)
@torch.no_grad()
def test_rollouts_while_rows_leave_and_the_cache_grows(family, records, used, changes, sampling):
    policy, encoder = loaded(family, **changes), encoder_of(family)
    policy.base.generation_config.eos_token_id = list(range(300, 310))
    prompts, tokenizer = encoder(records), encoder.processor.tokenizer
    settings = Sampling(group_size=6, max_new_tokens=100, **sampling)
    expected = generate(policy, prompts, settings, tokenizer, draw=5)
    assert used == []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = generate(policy, prompts, settings, tokenizer, draw=5, kernels=Kernels())
    assert_same(found, expected)
    assert found.texts == expected.texts
    (cache,) = used
    if settings.temperature:
        assert cache.selected
    assert int(expected.mask.sum(-1).max()) > 64


@needs_compiler
@pytest.mark.parametrize("leaving", [*LEAVING, {}], ids=str)
@torch.no_grad()
def test_a_decoder_by_kernels_equals_one_by_torch(source, encoder, records, leaving):
    policy = source.load().eval()
    prefix = policy.prefill(encoder((records * 4)[:4]))
    caches, rows = (GroupCache(prefix, 3), CpuKernelCache(prefix, 3)), torch.arange(12)
    decoders = make_decoder(policy, caches[0], 12), CpuDecoder(policy, network_of(policy), caches[1], None)
    drawn = torch.Generator().manual_seed(0)
    for token in range(20):
        tokens = torch.randint(100, (len(rows),), generator=drawn)
        positions = prefix.next_position.repeat_interleave(3)[rows] + token
        torch.testing.assert_close(*(decode(tokens, positions) for decode in decoders), atol=1e-4, rtol=1e-4)
        if token in leaving:
            rows = rows[leaving[token]]
            for cache, decode in zip(caches, decoders, strict=True):
                cache.select(torch.tensor(leaving[token]))
                decode.set_rows(len(rows))


def changed_step(change):
    """A step of other arguments: ``change`` maps its states and rows."""

    def step(self, states, stored, rows):
        return STEP(self, *change(states, stored, rows))

    return step


STEP = decoding.Network.step
FAULTS = {
    "slot": lambda states, stored, rows: (states, stored, replace(rows, slot=max(rows.slot - 1, 0))),
    "padding": lambda states, stored, rows: (states, stored, replace(rows, first_token=rows.first_token * 0)),
    "sine": lambda states, stored, rows: (states, stored, replace(rows, sine=-rows.sine)),
    "states": lambda states, stored, rows: (states.roll(1, 0), stored, rows),
}


@needs_compiler
@pytest.mark.parametrize("fault", FAULTS)
def test_comparing_finds_faults(monkeypatch, fault):
    assert check.compare(6, 2, 16, torch.float32, CPU) < 1e-5
    monkeypatch.setattr(decoding.Network, "step", changed_step(FAULTS[fault]))
    assert check.compare(6, 2, 16, torch.float32, CPU) > 2 * check._BOUNDS[torch.float32]


def other_activation(policy):
    policy.base.model.language_model.layers[1].mlp.act_fn = torch.nn.GELU()


def other_norm(policy):
    norm = policy.base.model.language_model.norm
    norm.__class__ = type("OtherNorm", (type(norm),), {})


def hooked(policy):
    policy.base.model.language_model.layers[0].mlp.down_proj.register_forward_hook(lambda *_: None)


@needs_compiler
@pytest.mark.parametrize("change", [other_activation, other_norm, hooked])
def test_models_that_compute_anything_else_are_run_by_torch(source, prompts, encoder, used, change):
    policy, tokenizer = source.load().eval(), encoder.processor.tokenizer
    assert network_of(policy) is not None
    change(policy)
    assert network_of(policy) is None
    sampling = Sampling(group_size=2, max_new_tokens=5)
    expected = generate(policy, prompts, sampling, tokenizer)
    assert_same(generate(policy, prompts, sampling, tokenizer, kernels=Kernels()), expected)
    assert used == []


@needs_compiler
@pytest.mark.parametrize("most", [3, 4])
def test_many_rows_are_left_to_torch(source, prompts, encoder, used, monkeypatch, most):
    monkeypatch.setattr(shared, "MAX_ROWS", most * len(prompts))
    policy, sampling = source.load().eval(), Sampling(group_size=4, max_new_tokens=5)
    expected = generate(policy, prompts, sampling, encoder.processor.tokenizer)
    assert_same(generate(policy, prompts, sampling, encoder.processor.tokenizer, kernels=Kernels()), expected)
    assert len(used) == (most == 4)


@needs_compiler
def test_weights_that_fit_in_the_memory_only_once_are_not_copied(source, monkeypatch):
    policy = source.load()
    parts = policy.base.model.language_model.layers, policy.base.lm_head
    size = 4 * sum(weight.numel() for part in parts for weight in part.parameters() if weight.dim() == 2)
    monkeypatch.setattr(cpu, "free_bytes", lambda _: size / cpu.SHARE + 1)
    assert network_of(policy) is not None
    monkeypatch.setattr(cpu, "free_bytes", lambda _: size / cpu.SHARE - 1)
    assert network_of(policy) is None


@pytest.mark.parametrize("compiler", ["off", "false"])
def test_without_a_compiler_that_works(source, prompts, encoder, monkeypatch, used, compiler):
    policy, tokenizer = source.load().eval(), encoder.processor.tokenizer
    sampling, kernels = Sampling(group_size=2, max_new_tokens=3), Kernels()
    expected = generate(policy, prompts, sampling, tokenizer)
    monkeypatch.setenv("CC", compiler)
    load_library.cache_clear()
    decoding._functions.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [generate(policy, prompts, sampling, tokenizer, kernels=kernels) for _ in range(2)]
    assert all(torch.equal(one.tokens, expected.tokens) for one in found)
    assert used == []
    said = [str(one.message) for one in caught if "kernels" in str(one.message)]
    # Who has no compiler misses nothing; one that fails is a fault.
    assert said == [
        "decoding kernels: LibraryError: decoding.c: the compiler failed; decoding goes on without them, which is"
        " slower"
    ] * (compiler == "false")
