"""Rollouts by the kernels of a CPU against those by torch's operators, and what is done where they cannot be used."""

import warnings

import pytest
import torch

from tests.policy.tiny_models import source_of
from tests.rollout.caches import LEAVING, assert_equal_attention, noted_caches
from tests.rollout.test_graphs import assert_same, encoder_of, loaded
from vr1.cpu_kernels import decoding
from vr1.cpu_kernels.library import compiler, load_library
from vr1.policy import Lora
from vr1.rollout import Sampling, generate
from vr1.rollout.cache import GroupCache
from vr1.rollout.kernels import CpuKernelCache, Kernels, check

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
@pytest.mark.parametrize("length", [11, 32])
def test_a_cache_by_kernels_equals_one_by_torch(monkeypatch, leaving, length):
    monkeypatch.setattr("vr1.rollout.cache._INITIAL_CAPACITY", 16)
    assert_equal_attention([GroupCache, CpuKernelCache], leaving, width=16, length=length, tokens=20)


FAULTS = {
    "attend": lambda function: lambda *most: function(*most[:-2], max(most[-2] - 1, 0), most[-1]),
    "padding": lambda function: lambda *most: function(*most[:5], most[5] * 0, *most[6:]),
    "sine": lambda function: lambda heads, cosine, sine, *others: function(heads, cosine, -sine, *others),
    "rms_norm": lambda function: lambda *arguments: function(*arguments) * 1.1,
    "gated": lambda function: lambda gate, up: function(up, gate),
}


@needs_compiler
@pytest.mark.parametrize("fault", FAULTS)
def test_comparing_finds_a_fault_of_each_kernel(monkeypatch, fault):
    assert check.compare(6, 2, 16, torch.float32, CPU) < 1e-5
    name = fault if hasattr(decoding, fault) else "attend"
    monkeypatch.setattr(decoding, name, FAULTS[fault](getattr(decoding, name)))
    assert check.compare(6, 2, 16, torch.float32, CPU) > 2 * check._BOUNDS[torch.float32]


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
