"""When vr1's decoding kernels are used; what needs Triton is skipped without."""

import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from vr1.data.synthetic import SceneSource
from vr1.detector import Detector
from vr1.policy import PolicySource
from vr1.prompts import PromptEncoder
from vr1.rollout import Sampling, SharedPrefixSampler, decoder, generate, sampler, shared
from vr1.rollout.kernels import KernelGroupCache, Kernels, check


class Always(Kernels):
    """Kernels that are used on a CPU too."""

    def fit(self, prefix, heads):
        return True


def prefix_on(device, width=16, dtype=torch.float32, kv_heads=2):
    """What `Kernels.fit` looks at of a prefix, on a device that need not be there."""
    return SimpleNamespace(
        keys=[SimpleNamespace(device=torch.device(device), shape=(3, kv_heads, 5, width), dtype=dtype)]
    )


@pytest.fixture
def compared(monkeypatch):
    """The arguments of every comparison, and what it returns or raises: an entry of ``result``."""
    noted = SimpleNamespace(calls=[], result=[1e-7])

    def compare(*arguments):
        noted.calls.append(arguments)
        if isinstance(noted.result[0], Exception):
            raise noted.result[0]
        return noted.result[0]

    monkeypatch.setattr(check, "compare", compare)
    monkeypatch.setattr(check, "find_spec", lambda name: name)
    return noted


def test_each_kind_of_model_is_compared_once(compared, monkeypatch):
    kernels, cuda = Kernels(), torch.device("cuda", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not kernels.fit(prefix_on("cpu", width=24), 4)
        assert not kernels.fit(prefix_on("cpu", dtype=torch.bfloat16), 4)
        assert not kernels.fit(prefix_on("mps"), 4)
        assert not kernels.fit(prefix_on("cuda:0", width=80), 4)
        assert not kernels.fit(prefix_on("cuda:0", dtype=torch.float64), 4)
        assert compared.calls == []
        for _ in range(2):
            assert kernels.fit(prefix_on("cuda:0"), 4)
        assert compared.calls == [(4, 2, 16, torch.float32, cuda)]
        assert kernels.fit(prefix_on("cuda:0", dtype=torch.float16), 4)
        assert kernels.fit(prefix_on("cuda:0"), 8)
        monkeypatch.setattr(check, "autocast_dtype", lambda _: torch.bfloat16)
        assert kernels.fit(prefix_on("cuda:0"), 4)
    assert compared.calls[1:] == [
        (4, 2, 16, torch.float16, cuda),
        (8, 2, 16, torch.float32, cuda),
        (4, 2, 16, torch.bfloat16, cuda),
    ]
    assert kernels.failure is None


def test_a_cpu_has_kernels_where_there_is_a_compiler(compared, monkeypatch):
    kernels = Kernels()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setenv("CC", "off")
        assert not kernels.fit(prefix_on("cpu"), 4)
        assert compared.calls == []
        monkeypatch.setenv("CC", sys.executable)
        for _ in range(2):
            assert kernels.fit(prefix_on("cpu", width=80), 4)
        assert compared.calls == [(4, 2, 80, torch.float32, torch.device("cpu"))]


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (RuntimeError("no compiler\nand much more"), "RuntimeError: no compiler"),
        (ValueError(), "ValueError: "),
        (0.5, "their results differ from torch's by 0.5, 0.005 is allowed"),
        (float("nan"), "their results differ from torch's by nan, 0.005 is allowed"),
        (None, "Triton is not installed"),
    ],
    ids=str,
)
def test_kernels_that_do_not_work_are_given_up_with_one_warning(compared, monkeypatch, result, reason):
    kernels = Kernels()
    if result is None:
        monkeypatch.setattr(check, "find_spec", lambda _: None)
    compared.result[0] = result
    with pytest.warns(UserWarning, match="decoding kernels") as caught:
        assert not kernels.fit(prefix_on("cuda"), 4)
    assert [str(warning.message) for warning in caught] == [
        f"decoding kernels: {reason}; decoding goes on without them, which is slower"
    ]
    assert kernels.failure == reason
    assert len(compared.calls) == (0 if result is None else 1)
    # Later rollouts do not try again, also of other models.
    compared.result[0] = 1e-7
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not kernels.fit(prefix_on("cuda"), 4)
        assert not kernels.fit(prefix_on("cuda"), 8)


def test_layers_of_another_build_use_no_kernels(source, prompts, encoder, monkeypatch):
    policy = source.load().eval()

    class OtherLayer(type(policy.base.model.language_model.layers[0])):
        pass

    sampling, tokenizer = Sampling(group_size=2, max_new_tokens=3), encoder.processor.tokenizer
    expected = generate(policy, prompts, sampling, tokenizer)
    policy.base.model.language_model.layers[-1].__class__ = OtherLayer
    monkeypatch.setattr(shared, "kernel_cache", lambda *_: pytest.fail("a cache by kernels"))
    assert torch.equal(generate(policy, prompts, sampling, tokenizer, kernels=Always()).tokens, expected.tokens)


def test_the_setting_of_the_sampler(source, prompts, encoder, monkeypatch):
    passed = []

    def noted(*arguments):
        passed.append(arguments[-1])
        return generate(*arguments)

    monkeypatch.setattr(sampler, "generate", noted)
    policy, sampling = source.load().eval(), Sampling(group_size=2, max_new_tokens=2)
    for setting in ("auto", "off"):
        one = SharedPrefixSampler(kernels=setting)
        for _ in range(2):
            one.sample(policy, prompts, sampling, encoder.processor.tokenizer)
    assert isinstance(passed[0], Kernels)
    assert passed[1] is passed[0], "what a process has found out is forgotten"
    assert passed[2:] == [None, None]


def test_kernels_that_cannot_be_launched_later_are_given_up(monkeypatch):
    """For shapes that were not tried, such as tiles too large for a card: the rollout is decoded again without them."""
    pytest.importorskip("triton")
    from triton.errors import TritonError

    used = []

    class Failing(KernelGroupCache):
        def rotate_and_attend(self, *arguments):
            used.append(True)
            raise TritonError("out of resource: shared memory\nmore")

    monkeypatch.setattr(shared, "kernel_cache", lambda _: Failing)
    monkeypatch.setattr(check.Kernels, "fit", lambda self, *_: self.failure is None)
    source, kernels = PolicySource(), check.Kernels()
    prompts = PromptEncoder(source.processor(), source.family(), 1024)([SceneSource(length=1)[0]])
    policy, tokenizer = source.load().eval(), source.processor().tokenizer
    sampling = Sampling(group_size=2, max_new_tokens=4)
    expected = generate(policy, prompts, sampling, tokenizer)
    monkeypatch.setattr(decoder, "_gate", lambda activation, _: lambda gate, up: activation(gate).mul_(up))
    monkeypatch.setattr(decoder, "fast_rms_norm", lambda norm, _=None: norm)
    with pytest.warns(UserWarning, match="decoding kernels: TritonError: out of resource: shared memory; decoding"):
        found = generate(policy, prompts, sampling, tokenizer, kernels=kernels)
    assert used
    assert found.texts == expected.texts
    assert kernels.failure == "TritonError: out of resource: shared memory"


def test_answers_of_a_detector_share_what_was_tried(monkeypatch):
    samplers = []
    sample = SharedPrefixSampler.sample
    monkeypatch.setattr(
        SharedPrefixSampler, "sample", lambda self, *others: samplers.append(self) or sample(self, *others)
    )
    detector = Detector.load(max_new_tokens=4)
    for _ in range(2):
        detector.answer(SceneSource(length=1)[0])
    assert samplers[0] is samplers[1]
