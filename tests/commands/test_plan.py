"""The plan: its parts against sizes counted independently, its reaction to settings, and the command."""

import shlex
import subprocess
import sys
from dataclasses import replace
from functools import partial

import bitsandbytes
import pytest
import torch
from grpo_step.shapes import config_of

from tests.command import CONFIGS, ROOT
from vr1.cli import main
from vr1.commands.plan.fit import GPUS, changes, usable
from vr1.commands.plan.live_bytes import LiveBytes
from vr1.commands.plan.needs import needs_of
from vr1.commands.plan.predict import predict
from vr1.families import Qwen25VL
from vr1.policy import Lora, Reference
from vr1.policy.attention import Scores
from vr1.policy.tiny import build_processor, build_tokenizer
from vr1.prompts import PromptEncoder
from vr1.rollout.cache import GroupCache, cache_capacity
from vr1.rollout.weights import dequantized_bytes
from vr1.types import Prefix


@pytest.fixture(scope="module")
def seven_b(tmp_path_factory):
    """A folder with the configuration of Qwen2.5-VL-7B and no weights."""
    folder, tokenizer = tmp_path_factory.mktemp("seven_b"), build_tokenizer()
    config_of("qwen2.5-vl-7b", tokenizer).save_pretrained(folder)
    build_processor(tokenizer, max_pixels=12845056).save_pretrained(folder)
    return folder


def test_weights_gradients_and_optimizer(needs):
    network = needs.policy.load().network
    size = 4 * sum(parameter.numel() for parameter in network.parameters())
    prediction = predict(needs)
    parts = prediction.moments["policy"]
    assert prediction.parameters == {"all": size // 4, "trained": size // 4}
    # Weights with the few values of the rotary embedding.
    assert parts["weights"] == pytest.approx(size, rel=1e-3)
    assert parts["reference"] == parts["weights"]
    assert (parts["gradients"], parts["optimizer"]) == (size, 2 * size)


def test_a_reference_is_a_copy_of_what_is_trained(needs):
    frozen = replace(needs, policy=replace(needs.policy, freeze_vision=True))
    policy = frozen.policy.load()
    [copied] = Reference(policy).policies()
    own = {weight.data_ptr() for weight in policy.parameters()}
    apart = [weight for weight in (*copied.parameters(), *copied.buffers()) if weight.data_ptr() not in own]
    size = sum(weight.nbytes for weight in apart)
    parts = predict(frozen).moments["policy"]
    assert parts["reference"] == pytest.approx(size, rel=1e-3)
    assert parts["reference"] < 0.8 * parts["weights"]
    half = replace(frozen, policy=replace(frozen.policy, dtype="bfloat16"))
    assert predict(half).moments["policy"]["reference"] == pytest.approx(size / 2, rel=1e-2)
    shards = predict(replace(frozen, processes=4, sharded=True)).moments["policy"]["reference"]
    assert shards == pytest.approx(size / 4, rel=1e-3)


def test_adapters(needs):
    lora = replace(needs, policy=replace(needs.policy, lora=Lora(rank=4)))
    network = lora.policy.load().network
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    prediction = predict(lora)
    assert prediction.parameters["trained"] == trained
    assert "reference" not in prediction.moments["policy"]
    assert prediction.moments["policy"]["adapters"] == 4 * trained


def test_four_bits_are_those_of_bitsandbytes(needs):
    source = replace(needs.policy, lora=Lora(rank=4), quantize="nf4")
    size = 0
    for parameter in source.load().network.get_base_model().parameters():
        size += 0 if parameter.requires_grad else parameter.numel() * parameter.element_size()
        if (state := getattr(parameter, "quant_state", None)) is not None:
            scales = (state.absmax, state.state2.absmax)
            size += sum(scale.numel() * scale.element_size() for scale in scales)
    assert predict(replace(needs, policy=source)).moments["policy"]["weights"] == pytest.approx(size, rel=0.02)


def test_dequantized_weights_are_those_of_a_rollout(needs):
    source = replace(needs.policy, lora=Lora(rank=4), quantize="nf4")
    copies = dequantized_bytes(source.load())
    plans = {
        form: predict(replace(needs, policy=replace(source, rollout_weights=form)))
        for form in ("auto", "quantized", "dequantized")
    }
    assert {form: plan.dequantized for form, plan in plans.items()} == {
        "auto": copies, "quantized": 0, "dequantized": 0
    }  # fmt: skip
    assert "dequantized weights" not in plans["auto"].moments["rollout"]
    assert plans["dequantized"].moments["rollout"]["dequantized weights"] == copies


@pytest.mark.parametrize(
    ("optimizer", "bytes_each"),
    [(partial(torch.optim.SGD, lr=1), 0), (torch.optim.AdamW, 8), (bitsandbytes.optim.PagedAdamW8bit, 2.03)],
)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_states_of_the_optimizer(needs, optimizer, bytes_each):
    prediction = predict(replace(needs, optimizer=optimizer))
    states = prediction.moments["update"].get("optimizer", 0)
    assert states == pytest.approx(bytes_each * prediction.parameters["trained"], rel=0.01)


def test_activations_are_those_that_autograd_saves(needs, records):
    """Against the same forward with weights, whose saved tensors are counted by their storages."""
    needs = replace(needs, policy=replace(needs.policy, min_pixels=112 * 112, max_pixels=112 * 112))
    policy = needs.policy.load()
    prompts = PromptEncoder(needs.policy.processor(), Qwen25VL(), 256)([records[0]] * 2)
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tokens = torch.randint(20, 400, (2, 4, 32))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy.log_probs(prompts, tokens, torch.ones_like(tokens, dtype=torch.bool))
    parts = predict(replace(needs, categories=len(records[0].categories))).moments["policy"]
    # The peak includes temporary tensors of the layer that runs and gradients that exist then.
    found = parts["activations"] + parts["logits"] + parts["gradients"]
    assert 0.95 * sum(kept.values()) < found < 1.4 * sum(kept.values())


@pytest.mark.parametrize("tokens", [1, 64, 65, 130])
def test_a_cache_allocates_its_capacity(tokens):
    prompts, group, kv_heads, width, heads = 2, 3, 2, 8, 4
    shape = (prompts, kv_heads, 5, width)
    prefix = Prefix(
        keys=[torch.empty(shape, device="meta")],
        values=[torch.empty(shape, device="meta")],
        state=torch.empty(prompts, 4, device="meta"),
        mask=torch.ones(prompts, 5, dtype=torch.bool),
        next_position=torch.zeros(prompts, dtype=torch.long),
    )
    rows = prompts * group
    query, own = (torch.empty(rows, count, width, device="meta") for count in (heads, 2 * kv_heads))
    cache = GroupCache(prefix, group)
    with LiveBytes() as live:
        for _ in range(tokens):
            cache.attend(0, query, own, Scores(0.3))
    assert live.now == 4 * 2 * rows * kv_heads * width * cache_capacity(tokens)


@pytest.mark.parametrize("settings", [{}, {"lora": Lora(rank=2, dropout=0.1)}], ids=["plain", "dropout"])
def test_a_prefix_with_a_graph_takes_memory_if_the_runtime_reuses_it(needs, settings):
    planned = replace(needs, policy=replace(needs.policy, **settings))
    reused = planned.policy.load().can_reuse_prefix(sharded=False)
    alone = predict(planned).moments["rollout"].get("activations", 0)
    sharded = predict(replace(planned, sharded=True)).moments["rollout"].get("activations", 0)
    assert (alone > 1.5 * sharded) == reused


@pytest.mark.parametrize(
    ("change", "part", "moment"),
    [
        ({"prompts": 4}, "activations", "policy"),
        ({"group_size": 8}, "cache", "rollout"),
        ({"completion_tokens": 128}, "cache", "rollout"),
    ],
)
def test_larger_settings_need_more(needs, change, part, moment):
    assert predict(replace(needs, **change)).moments[moment][part] > 1.2 * predict(needs).moments[moment][part]


def test_the_cache_has_room_for_a_power_of_two_of_tokens(needs):
    sizes = {
        tokens: predict(replace(needs, completion_tokens=tokens)).moments["rollout"]["cache"]
        for tokens in (64, 65, 128)
    }
    assert sizes[64] < sizes[65] == sizes[128]


def test_suggested_changes_save_memory(needs):
    plans = [predict(needs), *(predict(changed) for _, changed in list(changes(needs))[:3])]
    peaks = [plan.peak for plan in plans]
    assert peaks == sorted(peaks, reverse=True)
    # Of a model as small as this, the peak may be the optimizer's.
    in_loss = [sum(plan.moments["policy"].values()) for plan in plans]
    assert in_loss == sorted(set(in_loss), reverse=True)


def test_shards_are_a_share(needs):
    whole, part = predict(needs), predict(replace(needs, sharded=True, processes=4))
    for name in ("weights", "gradients", "optimizer", "reference"):
        assert part.moments["policy"][name] == pytest.approx(whole.moments["policy"][name] / 4)
    assert part.moments["rollout"]["gathered weights"] == pytest.approx(whole.moments["rollout"]["weights"], rel=1e-3)


def test_only_several_processes_with_all_weights_each_hold_gradients_to_exchange(needs):
    """DistributedDataParallel copies gradients into buckets, which together are as large as the gradients."""
    trained = 4 * sum(parameter.numel() for parameter in needs.policy.load().parameters())
    alone, two, shards = (
        predict(replace(needs, **settings)).moments
        for settings in ({}, {"processes": 2}, {"processes": 2, "sharded": True})
    )
    assert two["policy"]["buckets"] == two["update"]["buckets"] == trained
    assert all("buckets" not in parts for moments in (alone, shards) for parts in moments.values())


def test_settings_are_those_of_fit(seven_b):
    arguments = ["--config", str(CONFIGS / "qlora_a100_40gb.yaml"), "--model.policy.path", str(seven_b)]
    needs = needs_of([*arguments, "--model.sampling.group_size", "4", "--trainer.devices", "2"])
    assert (needs.prompts, needs.group_size, needs.completion_tokens, needs.processes) == (4, 4, 512, 2)
    assert (needs.policy.quantize, needs.policy.lora, needs.precision) == ("nf4", Lora(rank=8, alpha=16), "bf16-mixed")
    assert needs.reference
    assert not needs.sharded
    assert needs.optimizer.func is bitsandbytes.optim.PagedAdamW8bit
    sharded = needs_of(["--config", str(CONFIGS / "fsdp_8xa100.yaml"), "--trainer.strategy.cpu_offload", "true"])
    assert (sharded.sharded, sharded.offload, sharded.processes) == (True, True, 8)


def test_null_on_the_command_line_unsets_a_setting_of_the_file(seven_b):
    arguments = ["--config", str(CONFIGS / "qlora_a100_40gb.yaml"), "--model.policy.path", str(seven_b)]
    policy = needs_of([*arguments, "--model.policy.quantize", "null", "--model.policy.max_pixels=null"]).policy
    assert (policy.quantize, policy.max_pixels) == (None, None)
    assert policy.lora == Lora(rank=8, alpha=16)


@pytest.mark.parametrize(("devices", "count"), [("auto", 1), ("-1", 1), ("3", 3), ("[0, 2]", 2), ("0,", 1), ("0,2", 2)])
def test_processes_are_those_that_a_trainer_would_start(devices, count):
    assert needs_of(["--config", str(CONFIGS / "demo.yaml"), "--trainer.devices", devices]).processes == count


@pytest.mark.parametrize(("nodes", "devices", "count"), [(1, 4, 4), (2, 4, 8), (3, "auto", 3)])
def test_every_machine_starts_as_many_processes(nodes, devices, count):
    arguments = ["--config", str(CONFIGS / "demo.yaml"), "--trainer.num_nodes", str(nodes)]
    assert needs_of([*arguments, "--trainer.devices", str(devices)]).processes == count


def test_the_command_on_the_7b(seven_b, capsys):
    """Its 8.29 billion parameters are those of the released model; it fits where the configuration says it does."""
    arguments = ["plan", "--config", str(CONFIGS / "qlora_a100_40gb.yaml"), "--model.policy.path", str(seven_b)]
    # Fewer prompts than in the config, to save time.
    assert main([*arguments, "--data.batch_size", "1", "--gpu", "a100-40gb"]) == 0
    printed = capsys.readouterr().out
    # Including the adapters of rank 8.
    assert "8,312,351,744 parameters, 20,185,088 trained" in printed
    assert "fits: " in printed


def test_what_to_change_first(capsys, monkeypatch):
    monkeypatch.setitem(GPUS, "24gb", 1.5)
    assert main(["plan", "--config", str(CONFIGS / "demo.yaml"), "--gpu", "24gb"]) == 1
    *_, before, last = capsys.readouterr().out.splitlines()
    assert "first change" in before or before.startswith("  --model.policy.gradient_checkpointing true")
    assert last.startswith("  --model.policy.gradient_checkpointing true")
    assert last.endswith(", fits")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "abacus"], "--gpu abacus is not known; give one of"),
        (["--model.policy.path", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_errors_are_reported_in_one_line(arguments, message, capsys):
    assert main(["plan", "--config", str(CONFIGS / "demo.yaml"), *arguments]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_gpus():
    assert all(0 < usable(gpu) < size * 2**30 for gpu, size in GPUS.items())


@pytest.mark.slow
def test_the_plan_agrees_with_what_is_measured(tmp_path):
    command = f"benchmarks/memory_plan.py --out {tmp_path / 'out.json'} --only 'embedded, LoRA'"
    ran = subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, capture_output=True, text=True, check=True)
    ratio = float(ran.stdout.splitlines()[-1].split("|")[4])
    assert 0.95 < ratio < 1.05


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_and_states_of_adapters_are_in_float32_and_of_adapters_alone(needs, dtype):
    source = replace(needs.policy, lora=Lora(rank=4), dtype=dtype)
    adapters = [parameter for parameter in source.load().network.parameters() if parameter.requires_grad]
    size = sum(parameter.numel() * parameter.element_size() for parameter in adapters)
    assert {parameter.dtype for parameter in adapters} == {torch.float32}
    parts = predict(replace(needs, policy=source)).moments["policy"]
    assert (parts["adapters"], parts["gradients"], parts["optimizer"]) == (size, size, 2 * size)
