"""vr1's kernels of a decoding step, interpreted on a CPU, against plain loops, and rollouts with them."""

import warnings

import pytest
import torch

pytest.importorskip("triton", reason="CPU-only wheels of torch come without Triton")

from tests.policy.tiny_models import source_of
from tests.rollout import kernel_reference
from tests.rollout.caches import LEAVING, assert_equal_attention, noted_caches
from tests.rollout.emulated_graphs import EmulatedCapture
from tests.rollout.kernel_reference import Case, rotated
from tests.rollout.test_graphs import assert_same, encoder_of, loaded
from tests.rollout.triton_on_cpu import KERNELS, Launches, compiled, interpreted_kernels
from vr1.policy import Lora
from vr1.rollout import Sampling, cache, generate, shared
from vr1.rollout.cache import StaticGroupCache
from vr1.rollout.graphs import StepGraphs
from vr1.rollout.kernels import KernelGroupCache, Kernels, attention, check, layers

CPU = torch.device("cpu")
# Bytes of shared memory that a program has on GPUs for consumers, less than on others.
SHARED_MEMORY = 99 * 1024


@pytest.fixture
def interpreted():
    with interpreted_kernels() as patch:
        patch.setattr(check, "kernel_cache", lambda _: KernelGroupCache)
        yield patch


@pytest.fixture
def by_torch(monkeypatch):
    """Operators of torch in the place of the kernels, which take a second a token in the interpreter."""
    monkeypatch.setattr(check, "kernel_cache", lambda _: KernelGroupCache)
    for module, names in ((attention, ("attend", "rotate_and_store")), (layers, ("gated", "rms_norm"))):
        for name in names:
            monkeypatch.setattr(module, name, getattr(kernel_reference, name))


class Always(Kernels):
    """Kernels that are used on a CPU too."""

    def fit(self, prefix, heads):
        return True


def gap(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


# H, K, E, P, padding, where rows are stored, W, own tokens; then how prompts are divided: splits, blocks of queries.
CASES = {
    # Two blocks of queries; the slots of the second prompt are mostly empty.
    "qwen": ((28, 4, 128, 45, [0, 7], [0, 1, 8, 9, 13], 10, 1), (1, 2)),
    # Splits that see padding alone, or no token at all; two blocks of own tokens.
    "splits": ((6, 2, 32, 300, [0, 130], [1, 3, 5], 3, 33), (8, 1)),
    # One query to a key head; prompts shorter than a block, one of a single token; the last token fills a block.
    "short": ((4, 4, 16, 5, [0, 4], [0, 1, 2], 2, 32), (1, 1)),
    "two splits": ((4, 2, 16, 70, [9], [0, 1], 2, 70), (2, 1)),
}


@pytest.mark.parametrize(("case", "parts"), CASES.values(), ids=CASES)
def test_attention_equals_plain_loops(interpreted, case, parts):
    drawn = Case.random(*case)
    launches = Launches(attention._attend_prompts)
    interpreted.setattr(attention, "_attend_prompts", launches)
    expected = drawn.expected()
    found = attention.attend(**vars(drawn))
    assert gap(found.view(expected.shape), expected) < 1e-6
    assert launches.grids == [(len(drawn.prompt_keys), *parts)]
    # What stands for the kernel in longer rollouts computes the same.
    assert gap(kernel_reference.attend(**vars(drawn)).view(expected.shape), expected) < 1e-6


@pytest.mark.parametrize(("dtype", "size", "bound"), [(torch.float32, 300, 1e-5), (torch.float16, 1, 1e-3)], ids=str)
def test_attention_of_large_scores_and_in_half_precision(interpreted, dtype, size, bound):
    drawn = Case.random(6, 2, 32, 70, [0, 40], [0, 1, 5], 3, 40, dtype=dtype, size=size)
    expected = drawn.expected()
    found = attention.attend(**vars(drawn))
    assert found.dtype == dtype
    assert gap(found.view(expected.shape), expected) < bound


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(28, 4, 128), (6, 2, 32), (4, 4, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rotates_and_stores(interpreted, heads, kv_heads, width, dtype):
    rows = 2 if heads > 6 else 3
    drawn = Case.random(heads, kv_heads, width, 5, [0, 0], [0, 4, 5][:rows], 3, 7, dtype=dtype)
    before, own = drawn.own.clone(), drawn.own
    total = heads + 2 * kv_heads
    # Rows of a wider tensor, whose further columns are no numbers.
    wide = torch.full((rows, total + 3, width), torch.nan, dtype=dtype)
    new = wide[:, 2 : total + 2].copy_(torch.randn(rows, total, width))
    cosine, sine = torch.randn(2, rows, width).to(dtype)
    by_torch = own.clone()
    arguments = drawn.slot_of_row, drawn.slot
    query = attention.rotate_and_store(new, cosine, sine, own, *arguments)
    turned = rotated(new[:, :-kv_heads], cosine, sine)
    bound = 1e-6 if dtype == torch.float32 else 1e-3
    assert query.dtype == dtype
    assert gap(query, turned[:, :heads]) < bound
    for row, place in enumerate(drawn.slot_of_row.tolist()):
        stored = own[:, place // 3, :, place % 3, 6]
        assert gap(stored[0], turned[row, heads:]) < bound
        assert torch.equal(stored[1], new[row, -kv_heads:])
        before[:, place // 3, :, place % 3, 6] = stored
    assert torch.equal(own, before), "something else was changed"
    if dtype == torch.float32:
        other = kernel_reference.rotate_and_store(new, cosine, sine, by_torch, *arguments)
        torch.testing.assert_close((query, own), (other, by_torch))


@pytest.mark.parametrize("width", [1, 300, 1024])
def test_norm(interpreted, width):
    # In the smallest row the epsilon decides.
    states = torch.randn(3, width) * torch.tensor([1e-4, 1.0, 100.0])[:, None]
    weight = torch.randn(width)
    scale = (states.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    found = layers.rms_norm(states, weight, 1e-6)
    torch.testing.assert_close(found.double(), states * scale * weight.double(), atol=0, rtol=1e-5)
    half = layers.rms_norm(states.half(), weight, 1e-6)
    assert half.dtype == torch.float16


@pytest.mark.parametrize("width", [3, 1024, 1500])
def test_gate(interpreted, width):
    both = torch.randn(2, 2 * width + 1) * 10
    gate, up = both[:, :width], both[:, width + 1 :]
    expected = gate.double() / (1 + (-gate.double()).exp()) * up.double()
    torch.testing.assert_close(layers.gated(gate, up).double(), expected, atol=1e-6, rtol=1e-5)
    separate = layers.gated(gate, up.contiguous())
    torch.testing.assert_close(separate.double(), expected, atol=1e-6, rtol=1e-5)


@pytest.fixture
def family(request, source, tmp_path):
    """Qwen2.5-VL, or Qwen3-VL, which normalizes queries and keys."""
    return source_of(request.param, source, tmp_path)


@pytest.mark.parametrize(
    ("family", "lora"),
    [("qwen2_5_vl", None), ("qwen3_vl", Lora(rank=2))],
    ids=["all weights", "LoRA of Qwen3-VL"],
    indirect=["family"],
)
def test_rollouts_by_interpreted_kernels(interpreted, family, records, monkeypatch, lora):
    policy, encoder = loaded(family, lora=lora), encoder_of(family)
    prompts, tokenizer = encoder(records[:2]), encoder.processor.tokenizer
    sampling = Sampling(group_size=2, max_new_tokens=4)
    policy.base.generation_config.eos_token_id = [1]
    unending = generate(policy, prompts, sampling, tokenizer)
    # The first prompt loses a row, and then there is one row less to compute.
    policy.base.generation_config.eos_token_id = [int(unending.tokens[0, 0, 1])]
    expected = generate(policy, prompts, sampling, tokenizer)
    assert not expected.mask[0, 0, 2:].any()
    assert int(expected.mask[..., -1].sum()) == 3
    caches = noted_caches(monkeypatch, KernelGroupCache)
    found = generate(policy, prompts, sampling, tokenizer, kernels=Always())
    assert_same(found, expected)
    assert found.texts == expected.texts
    assert [cache.selected for cache in caches] == [1]


@pytest.mark.parametrize(
    ("family", "lora", "graphs"),
    [("qwen2_5_vl", Lora(rank=2), False), ("qwen2_5_vl", None, True), ("qwen3_vl", Lora(rank=2), True)],
    ids=["eager", "graphs", "graphs of Qwen3-VL"],
    indirect=["family"],
)
@torch.no_grad()
def test_long_rollouts_while_rows_leave_and_the_cache_grows(by_torch, family, records, monkeypatch, lora, graphs):
    policy, encoder = loaded(family, lora=lora), encoder_of(family)
    policy.base.generation_config.eos_token_id = list(range(300, 310))
    prompts, tokenizer = encoder(records), encoder.processor.tokenizer
    sampling, capture = Sampling(group_size=6, max_new_tokens=100), EmulatedCapture()
    expected = generate(policy, prompts, sampling, tokenizer, draw=5)
    assert int(expected.mask.sum(-1).max()) > 70
    monkeypatch.setattr(cache, "_STATIC_CAPACITY", 32)
    monkeypatch.setattr(shared, "_COMPACT_GRAPH_BELOW", 0.75)
    caches = noted_caches(monkeypatch, KernelGroupCache)
    replays = StepGraphs(capture) if graphs else None
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = generate(policy, prompts, sampling, tokenizer, draw=5, graphs=replays, kernels=Always())
    assert_same(found, expected)
    assert found.texts == expected.texts
    (used,) = caches
    assert used.selected
    assert used.capacity == 128
    assert not graphs or (capture.captured >= 3 and capture.replayed > 20)


@pytest.mark.parametrize("leaving", LEAVING, ids=str)
def test_a_cache_by_kernels_equals_one_by_torch(by_torch, leaving):
    assert_equal_attention([StaticGroupCache, KernelGroupCache], leaving, width=8, length=11, tokens=9)


def test_interpreting_leaves_nothing_behind():
    import triton.language as tl

    places = (tl, tl.core, tl.math, tl.standard, tl.tensor, attention, layers)
    before = [dict(vars(place)) for place in places]
    with interpreted_kernels() as patch:
        patch.setattr(attention, "_attend_own", None)
        layers.gated(torch.ones(1, 2), torch.ones(1, 2))
        layers.rms_norm(torch.ones(1, 2), torch.ones(2), 1e-6)
    assert [dict(vars(place)) for place in places] == before


def test_comparing_finds_no_difference(interpreted):
    assert check.compare(2, 1, 16, torch.float32, CPU) < 1e-5


def one_token_too_few(attend, rows=(1, 2, 63, 64)):
    def faulty(query, *arguments):
        *most, slot, scaling = arguments
        return attend(query, *most, (slot - int(len(query) in rows)).clamp(min=0), scaling)

    return faulty


FAULTS = {
    "always": (attention, "attend", one_token_too_few),
    "until a row leaves": (attention, "attend", lambda function: one_token_too_few(function, rows=(2, 64))),
    "when a row has left": (attention, "attend", lambda function: one_token_too_few(function, rows=(1, 63))),
    "sine": (
        attention,
        "rotate_and_store",
        lambda function: lambda heads, cosine, sine, *others: function(heads, cosine, -sine, *others),
    ),
    "norm": (layers, "rms_norm", lambda function: lambda *arguments: function(*arguments) * 1.1),
    "gate": (layers, "gated", lambda function: lambda gate, up: function(up, gate)),
}


@pytest.mark.parametrize(("module", "name", "fault"), FAULTS.values(), ids=FAULTS)
def test_comparing_finds_a_fault_of_each_kernel(by_torch, monkeypatch, module, name, fault):
    assert check.compare(2, 1, 16, torch.float32, CPU) < 1e-5
    monkeypatch.setattr(module, name, fault(getattr(module, name)))
    assert check.compare(2, 1, 16, torch.float32, CPU) > 2 * max(check._BOUNDS.values())


def launched(monkeypatch, dtype):
    """The kernels with the arguments that they are launched with, for a model of 7 billion parameters."""
    notes = {}
    for module, names in KERNELS.items():
        for name in names:
            notes[name] = getattr(module, name), Launches()
            monkeypatch.setattr(module, name, notes[name][1])
    drawn = Case.random(28, 4, 128, 100, [0], range(16), 16, 40, dtype=dtype)
    heads, angles = torch.empty(16, 36, 128, dtype=dtype), torch.empty(16, 128, dtype=dtype)
    attention.rotate_and_store(heads, angles, angles, drawn.own, drawn.slot_of_row, drawn.slot)
    attention.attend(**vars(drawn))
    states = torch.empty(16, 3584, dtype=dtype)
    layers.rms_norm(states, states[0], 1e-6)
    layers.gated(states, states)
    monkeypatch.undo()
    return [(kernel, noted.calls[0]) for kernel, noted in notes.values()]


# Compiling takes seconds, so of the second generation only products, and in float32 only the largest tiles.
@pytest.mark.parametrize(
    ("dtype", "capability", "names"),
    [(torch.bfloat16, 80, ""), (torch.bfloat16, 90, "_attend"), (torch.float32, 80, "_attend_p")],
    ids=["bfloat16, sm_80", "bfloat16, sm_90", "float32, sm_80"],
)
def test_kernels_compile_for_gpus(monkeypatch, tmp_path, dtype, capability, names):
    from triton import knobs

    try:
        knobs.nvidia.ptxas.version  # noqa: B018
    except RuntimeError as error:
        pytest.skip(f"no ptxas: {error}")
    kernels = launched(monkeypatch, dtype)
    # An empty cache; and what Triton 3.9 warns about if it is not set.
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    chosen = [(kernel, call) for kernel, call in kernels if kernel.__name__.startswith(names)]
    assert len(chosen) == {"": 5, "_attend": 2, "_attend_p": 1}[names]
    for kernel, call in chosen:
        result = compiled(kernel, call, capability)
        assert result.metadata.shared <= SHARED_MEMORY, kernel.__name__
        assert result.asm["cubin"]
