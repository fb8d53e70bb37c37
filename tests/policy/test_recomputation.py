"""Gradient checkpointing as far as the memory requires: the same gradients, measured sizes, nothing left behind."""

import csv
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch

from tests.command import run, small, steps
from tests.policy.test_loading import ADAPTERS, gradients
from vr1.commands.plan.live_bytes import LiveBytes
from vr1.commands.plan.needs import Needs
from vr1.commands.plan.predict import _policy_step, predict, storing_layers
from vr1.commands.plan.shapes import empty_policy, largest_prompts
from vr1.errors import UserError
from vr1.policy import Lora, PolicySource
from vr1.policy import policy as policy_module
from vr1.policy import recomputation as module
from vr1.policy.recomputation import Recomputation, room_for_activations
from vr1.policy.tiny import Sizes, write_model

GIB = 2**30


@pytest.fixture(scope="module")
def four_layers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "four"
    write_model(folder, Sizes(hidden=64, layers=4, heads=4, kv_heads=2, intermediate=96))
    return PolicySource(path=str(folder), freeze_vision=True, gradient_checkpointing="auto")


def layers_of(policy):
    return list(policy.base.get_decoder().layers)


def recomputing(policy):
    return [layer.gradient_checkpointing for layer in layers_of(policy)]


def network_of(weights, dtype=torch.float32):
    """What `room_for_activations` reads of a network of 7 layers."""
    text = SimpleNamespace(hidden_size=10, vocab_size=50, num_hidden_layers=7)
    config = SimpleNamespace(get_text_config=lambda: text)
    return SimpleNamespace(config=config, parameters=lambda: iter(weights), dtype=dtype)


def needs_of(policy):
    return Needs(
        policy=policy,
        prompts=4,
        group_size=4,
        completion_tokens=60,
        max_prompt_tokens=256,
        reference=False,
        optimizer=torch.optim.AdamW,
    )


class Fixed(Recomputation):
    """Lets a number of layers store their activations."""

    def __init__(self, layers, storing):
        super().__init__(layers)
        self.storing = storing

    def _fitting(self, room, tokens):
        return self.storing


@pytest.mark.parametrize("adapters", ADAPTERS, ids=["whole", "lora", "qlora"])
def test_gradients_do_not_depend_on_how_many_layers_recompute(four_layers, prompts, ragged_completions, adapters):
    found = []
    for storing in (0, 2, 4):
        policy = replace(four_layers, **adapters).load()
        policy.recomputation = Fixed(layers_of(policy), storing)
        seen = _flags_in_forward(policy)
        found.append(gradients(policy, prompts, ragged_completions))
        # The last but one is the first to store its activations, and the last one the last.
        expected = [[True] * 4, [True, True, False, True], [True, False, False, True], [False] * 3 + [True]]
        assert seen[:4] == [*expected, [False] * 4][storing]
        assert policy.recomputation.recomputed == 4 - storing
        assert recomputing(policy) == [True] * 4
    assert found[0]
    for others in found[1:]:
        assert others.keys() == found[0].keys()
        for name, gradient in others.items():
            assert torch.equal(gradient, found[0][name]), name


def _flags_in_forward(policy):
    seen = []
    for layer in layers_of(policy):
        layer.register_forward_pre_hook(lambda layer, _: seen.append(layer.gradient_checkpointing))
    return seen


def test_the_first_forward_measures_and_later_ones_fill_the_room():
    layers = [torch.nn.Linear(2, 2) for _ in range(6)]
    choice = Recomputation(layers)

    def storing(room, tokens):
        with choice.choose(room, tokens):
            return [number for number, layer in enumerate(layers) if layer.gradient_checkpointing is False]

    for layer in layers:
        layer.gradient_checkpointing = True
    assert storing(-1.0, 10) == []
    assert choice.bytes_per_token is None
    with choice.choose(1.0, 10):
        assert [layer.gradient_checkpointing for layer in layers] == [True] * 4 + [False, True]
        layers[4](torch.ones(5, 2, requires_grad=True))
    # The input, 5 x 2 values of 4 bytes; the weights do not count.
    assert choice.bytes_per_token == 40 / 10
    # One more than is stored has to fit: 4 bytes x 100 tokens each.
    for room, expected in ((-5.0, []), (799, []), (800, [4]), (1599, [3, 4]), (2000, [1, 2, 3, 4])):
        assert storing(room, 100) == expected
    assert storing(2400, 100) == [0, 1, 2, 3, 4]
    assert storing(1e9, 100) == [0, 1, 2, 3, 4, 5]
    # Nothing was stored in these: the most counts.
    assert choice.bytes_per_token == 4.0


@pytest.mark.parametrize("adapters", [{}, {"lora": Lora(rank=2)}], ids=["whole", "lora"])
def test_what_a_layer_stores_is_measured(four_layers, prompts, adapters, no_compiler):
    """Against the growth of memory that operators on tensors without content cause, which vr1 plan counts."""
    tokens = torch.full((3, 4, 30), 7)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    policy = replace(four_layers, **adapters).load()
    policy.log_probs(prompts, tokens, mask)
    measured = policy.recomputation.bytes_per_token * (3 * 4 * 29 + prompts.tokens.numel())
    kept, recomputed = (
        _live(replace(four_layers, **adapters), again, prompts, tokens, mask) for again in (False, True)
    )
    # The last of the four layers stores less of prompts; the input, which counts as stored, is there in both.
    assert 1.0 < measured / ((kept - recomputed) / 4) < 1.35


def _live(source, again, prompts, tokens, mask):
    policy = empty_policy(needs_of(replace(source, gradient_checkpointing=again)))
    with LiveBytes() as live:
        log_probs, _ = policy.log_probs(prompts, tokens, mask)
        stored = live.now
    del log_probs
    return stored


def test_a_forward_without_backward_leaves_nothing_behind(four_layers, prompts, ragged_completions):
    policy = empty_policy(needs_of(four_layers))
    policy.recomputation = Fixed(layers_of(policy), 4)
    with LiveBytes() as live:
        result = policy.log_probs(prompts, *ragged_completions)
        assert live.now > 1e5
        del result
        assert live.now == 0
    assert all(not layer._forward_hooks and not layer._forward_pre_hooks for layer in layers_of(policy))


def test_a_forward_that_fails_changes_no_later_one(four_layers, prompts, ragged_completions, monkeypatch):
    policy = four_layers.load()
    policy.recomputation = Fixed(layers_of(policy), 4)
    broken, counted = layers_of(policy)[2].mlp, []
    count = module._StoredBytes._count

    def fail(*_):
        assert counted
        raise RuntimeError("no memory")

    monkeypatch.setattr(module._StoredBytes, "_count", lambda *counts: counted.append(counts) or count(*counts))

    with monkeypatch.context() as patch:
        patch.setattr(broken, "forward", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            policy.log_probs(prompts, *ragged_completions)
    assert recomputing(policy) == [True] * 4
    assert all(not layer._forward_hooks and not layer._forward_pre_hooks for layer in layers_of(policy))
    # Nor does anything count what is stored for backward from now on.
    counted.clear()
    (torch.ones(3, requires_grad=True) * torch.ones(3)).sum().backward()
    assert not counted


def test_only_forwards_for_backward_choose(four_layers, prompts, ragged_completions):
    policy = four_layers.load()
    with torch.no_grad():
        policy.log_probs(prompts, *ragged_completions)
    policy.eval()
    policy.log_probs(prompts, *ragged_completions)
    assert (policy.recomputation.bytes_per_token, policy.recomputation.recomputed) == (None, 4)


def test_an_interrupt_in_a_layer_ends_counting(four_layers, prompts, ragged_completions, monkeypatch):
    policy, counted = four_layers.load(), []
    policy.recomputation = Fixed(layers_of(policy), 4)
    monkeypatch.setattr(module._StoredBytes, "_count", lambda _, stored: counted.append(stored) or stored.detach())

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(layers_of(policy)[2].mlp, "forward", interrupt)
    with pytest.raises(KeyboardInterrupt):
        policy.log_probs(prompts, *ragged_completions)
    counted.clear()
    (torch.ones(3, requires_grad=True) * torch.ones(3)).sum().backward()
    assert not counted


@pytest.mark.parametrize("again", [True, False])
def test_other_settings_choose_nothing(four_layers, again):
    policy = replace(four_layers, gradient_checkpointing=again).load()
    assert policy.recomputation is None
    assert recomputing(policy) == [again] * 4


@pytest.mark.parametrize("gib", [0.0001, 0.5, 20.0])
def test_less_free_memory_recomputes_more(four_layers, prompts, ragged_completions, monkeypatch, gib):
    policy = four_layers.load()
    policy.log_probs(prompts, *ragged_completions)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=gib * GIB))
    policy.log_probs(prompts, *ragged_completions)
    assert policy.recomputation.recomputed == (4 if gib < 0.1 else 0)


def test_room_beside_inputs_logits_and_gradients(monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda device: 10_000_000)
    trained, done, fixed = (torch.nn.Parameter(torch.zeros(1000)) for _ in range(3))
    done.grad = torch.zeros(1000)
    fixed.requires_grad_(False)

    def room(tokens, dtype=torch.float32):
        return room_for_activations(network_of([trained, done, fixed], dtype), tokens, torch.device("cpu"))

    assert room(200) == 8_000_000 - 7 * 200 * 10 * 4 - 5 * 200 * 50 * 4 - 4000
    # Logits exist in parts.
    assert room(5000, torch.bfloat16) == 8_000_000 - 7 * 5000 * 10 * 2 - 5 * 1024 * 50 * 4 - 4000


@pytest.mark.parametrize("adapters", [{}, {"lora": Lora(rank=2)}], ids=["whole", "lora"])
@pytest.mark.parametrize("autocast", [False, True])
def test_few_long_completions_foretell_many(four_layers, prompts, adapters, autocast):
    """What a layer stores in a full batch is no more than a batch of unequal completions leads to expect."""
    tokens = torch.full((3, 4, 60), 7)
    full = torch.ones_like(tokens, dtype=torch.bool)
    unequal = torch.arange(60) < 5
    unequal = unequal.expand(3, 4, 60).clone()
    unequal[0, 0] = True
    stored = []
    for mask in (unequal, full):
        policy = replace(four_layers, **adapters).load()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            policy.log_probs(prompts, tokens, mask)
        stored.append(policy.recomputation.bytes_per_token)
    # Attention is computed on padded completions: more, but not as much more as there is padding.
    assert stored[1] <= stored[0] < 2.2 * stored[1]


@pytest.mark.parametrize(("trained", "activations"), [(True, 5 * 30 * 2), (False, 0)])
def test_copies_of_weights_are_no_activations(trained, activations):
    """Autocast's, which do not grow with the batch, and are counted with the room."""
    layer = torch.nn.Linear(30, 40).requires_grad_(trained)
    counter = module._StoredBytes(layer)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.ones(5, 30, requires_grad=True))
    assert counter.total == activations


def test_room_counts_what_autocast_copies(monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda device: 10_000_000)
    weights = [torch.nn.Parameter(torch.zeros(1000)), torch.nn.Parameter(torch.zeros(1000, dtype=torch.bfloat16))]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    rooms = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            rooms.append(room_for_activations(network_of(weights), 200, torch.device("cpu")))
    assert rooms[0] - rooms[1] == 2000


@pytest.mark.parametrize("settings", [{"freeze_vision": False}, {"share_prompt": False}])
def test_policies_whose_memory_is_not_counted_are_refused(four_layers, settings):
    with pytest.raises(UserError, match=r"set policy\.freeze_vision true or policy\.lora, or"):
        replace(four_layers, **settings).load()


def test_tokens_of_a_forward(four_layers, prompts, ragged_completions, monkeypatch):
    seen = []

    def room(network, tokens, device):
        seen.append(tokens)
        return 0.0

    monkeypatch.setattr(policy_module, "room_for_activations", room)
    policy, (tokens, mask) = four_layers.load(), ragged_completions
    of_prompts = sum(len(row) for row in prompts.tokens) - int((~prompts.mask).sum())
    policy.log_probs(prompts, tokens, mask)
    policy.log_probs(prompts, tokens, torch.zeros_like(mask))
    policy.log_probs(prompts, tokens, mask, prefix=policy.prefill(prompts))
    lengths = [9, 1, 4, 7, 2, 2, 9, 3, 5, 8, 6, 1]
    read = sum(length - 1 for length in lengths)
    assert seen == [read + of_prompts, 1 + of_prompts, read]


def test_a_training_says_what_it_chose(tmp_path, tiny_model, capsys, caplog):
    arguments = [*small(tiny_model), *steps(3), "--model.policy.gradient_checkpointing", "auto"]
    arguments += ["--model.policy.freeze_vision", "true"]
    arguments += ["--trainer.callbacks+", "callbacks.Throughput"]
    assert run(tmp_path, "fit", *arguments) == 0
    assert "gradient_checkpointing auto: 0 of 2 layers recompute" in caplog.text + capsys.readouterr().err
    (path,) = tmp_path.rglob("metrics.csv")
    with path.open() as file:
        found = [row["perf/recomputed_layers"] for row in csv.DictReader(file)]
    assert [float(value) for value in found if value] == [1.0, 0.0, 0.0]


def test_a_plan_predicts_what_a_training_chooses(four_layers):
    needs = needs_of(replace(four_layers, lora=Lora(rank=2)))
    plan = predict(needs)
    assert plan.moments == predict(replace(needs, policy=replace(needs.policy, gradient_checkpointing=True))).moments
    kept = empty_policy(replace(needs, policy=replace(needs.policy, gradient_checkpointing=False)))
    without = sum(_policy_step(kept, largest_prompts(needs, 4), needs))
    policy = plan.moments["policy"]
    layer = (without - policy["activations"] - policy["logits"]) / 4
    state = policy["weights"] + policy["adapters"] + policy["optimizer"]
    needed = sum(policy.values()) - state
    for layers in range(5):
        room = state + (needed + (layers + 0.5) * 1.1 * layer) / 0.8
        found, of = storing_layers(needs, plan, room)
        assert abs(found - layers) <= 1
        assert of == 4
        # What is there all the time leaves as much free of a larger memory.
        heavy = replace(plan, moments={"policy": {**policy, "reference": 10 * GIB}})
        assert storing_layers(needs, heavy, room + 10 * GIB)[0] == found
    assert storing_layers(needs, plan, state)[0] == 0
    assert storing_layers(needs, plan, 100 * GIB)[0] == 4
