"""What a plan counts beside a step on one GPU: masks, autocast, validation, the host; and models that are not there."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from tests.command import CONFIGS
from vr1.commands.plan.command import table
from vr1.commands.plan.fit import changes, without_four_bits
from vr1.commands.plan.live_bytes import LiveBytes
from vr1.commands.plan.models import KNOWN_MODELS, known_model
from vr1.commands.plan.needs import needs_of
from vr1.commands.plan.predict import predict
from vr1.commands.plan.shapes import largest_prompts
from vr1.policy import Lora, PolicySource
from vr1.rollout.vllm.memory import parameter_count

# As published on the hub, and of Griffon-G those of Gemma 2 of 9B and of CLIP's ViT-L/14 at 1022 pixels.
COUNTS = {
    "Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Griffon-G-gemma2-9B": 9_649_980_928 - 54_018_048,
}


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_models_that_configs_name_are_known_without_a_network(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with known_model(PolicySource(path=f"somewhere/{name}", dtype="bfloat16")) as source:
        assert parameter_count(source) == COUNTS[name]
        source.family()
        tokens = source.processor().tokenizer("Find the dog, 12 cats.", add_special_tokens=False)["input_ids"]
        # Find| the| dog|,| |1|2| cats|.
        assert len(tokens) == 9


def test_image_tokens_of_a_known_model():
    with known_model(PolicySource(path="Qwen/Qwen2.5-VL-7B-Instruct")) as source:
        processor = source.processor()
    text = "<|vision_start|><|image_pad|><|vision_end|>"
    encoded = processor(text=[text], images=[Image.new("RGB", (1008, 784))], return_tensors="pt")
    assert int((encoded["input_ids"] == 151655).sum()) == (1008 // 28) * (784 // 28)


def test_a_folder_and_other_names_are_left_alone(tmp_path, tiny_model):
    (tmp_path / "Qwen2.5-VL-7B-Instruct").mkdir()
    for path in (tmp_path / "Qwen2.5-VL-7B-Instruct", tiny_model, "Qwen/Qwen2-VL-7B-Instruct"):
        source = PolicySource(path=str(path))
        with known_model(source) as same:
            assert same is source


def test_prompts_are_of_unequal_lengths(needs):
    lengths = largest_prompts(needs, 3).mask.sum(1).tolist()
    assert lengths[0] == lengths[1] > lengths[2] > 0.9 * lengths[0]
    assert largest_prompts(needs, 1).mask.all()
    # Of one category too.
    assert not largest_prompts(replace(needs, categories=1), 2).mask.all()


def test_autocast_saves_converted_weights_and_inputs_for_backward():
    layer = nn.Linear(100, 300, bias=False, device="meta")
    inputs = torch.empty(7, 100, device="meta", requires_grad=True)
    with LiveBytes(torch.bfloat16) as live:
        output = layer(inputs)
        assert output.dtype == torch.bfloat16
        # Of the inputs and of the weight in bfloat16, and the output.
        assert live.now == 2 * (7 * 100 + 100 * 300 + 7 * 300)
    with LiveBytes() as live:
        layer(inputs)
        assert live.peak == 4 * 7 * 300
    # The functions are torch's own again.
    assert layer(inputs).dtype == torch.float32


def test_operators_that_are_repeated_are_counted_each_time():
    numbers = torch.empty(6, 10, device="meta", dtype=torch.int32)
    for _ in range(3):
        with LiveBytes() as live:
            kept = []
            for count in range(1, 4):
                kept += [numbers + 1, numbers + 1.0, numbers.sum(0), numbers.sum(1), numbers * True]
                assert live.now == count * (240 + 240 + 80 + 48 + 240)
                # Shares the memory of another.
                kept += [numbers.view(60), numbers.t(), kept[0].add_(1), torch.ops.aten._unsafe_view(numbers, [60])]
                assert live.now == count * (240 + 240 + 80 + 48 + 240)
            kept += [numbers.t().contiguous()]
        assert [tensor.dtype for tensor in kept[:3]] == [torch.int32, torch.float32, torch.int64]
        assert (kept[-1].shape, kept[-1].stride()) == ((10, 6), (6, 1))


def test_a_mixed_precision_training_has_no_second_copy_of_its_weights(needs):
    mixed, full = predict(replace(needs, precision="bf16-mixed")), predict(needs)
    for part in ("weights", "gradients", "optimizer", "reference"):
        assert mixed.moments["policy"][part] == full.moments["policy"][part]


def test_adapters_read_float32_inputs(needs):
    """In a model of bfloat16, peft converts the inputs of adapted layers to the adapters' precision and saves them."""
    half = replace(needs, precision="bf16-mixed")
    one, six = (
        predict(replace(half, policy=replace(needs.policy, dtype="bfloat16", lora=Lora(rank=2, targets=targets))))
        for targets in (["o_proj"], ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"])
    )
    text = needs.policy.config().get_text_config()
    tokens = largest_prompts(needs, 2).tokens.numel() + 2 * 4 * 32
    more = six.moments["policy"]["activations"] - one.moments["policy"]["activations"]
    # In bfloat16, five layers' inputs would be two tensors of two bytes a number.
    assert more > 2.5 * 4 * tokens * text.num_hidden_layers * text.hidden_size


def test_validation(needs):
    assert "validation" not in predict(needs).moments
    few, many = (predict(replace(needs, eval_prompts=count, eval_tokens=32)) for count in (2, 16))
    assert "gradients" not in many.moments["validation"]
    assert many.moments["validation"]["cache"] > 6 * few.moments["validation"]["cache"]
    assert many.worst == "validation" or many.moments["validation"]["weights"] == many.moments["policy"]["weights"]
    assert "validation" in table(many)
    assert "validation" not in table(predict(needs))


def test_validation_of_a_run_is_read_from_its_settings(tiny_model):
    own = ["--config", str(CONFIGS / "qlora_a100_40gb.yaml"), "--model.policy.path", str(tiny_model)]
    needs = needs_of([*own, "--trainer.num_nodes", "2"])
    assert (needs.eval_prompts, needs.eval_tokens, needs.machines) == (16, 512, 2)
    assert needs_of([*own, "--trainer.limit_val_batches", "0"]).eval_prompts == 0


def test_fewer_answers_at_once_come_before_changes_to_the_training(needs):
    listed = [arguments for arguments, _ in changes(replace(needs, eval_prompts=8))]
    assert listed[1].endswith("--data.eval_batch_size 4")
    assert listed[2].endswith("--data.eval_batch_size 2")
    assert "--data.batch_size 1" in listed[3]


def test_the_host(needs):
    count = sum(parameter.numel() for parameter in needs.policy.load().parameters())
    assert predict(needs).host == 2 * 4 * count
    assert predict(replace(needs, reference=False, processes=4)).host == 4 * 4 * count
    frozen = replace(needs, policy=replace(needs.policy, freeze_vision=True))
    trained = sum(weight.numel() for weight in frozen.policy.load().parameters() if weight.requires_grad)
    assert predict(frozen).host == 4 * (count + trained)
    assert predict(replace(frozen, reference=False)).host == 4 * count
    # Sharded, the processes of a machine share the files of 16-bit weights.
    sharded = replace(needs, processes=8, machines=2, sharded=True)
    assert predict(sharded).host == 2 * count
    offloaded = predict(replace(sharded, offload=True)).host
    # Half of weights, reference, gradients and two states of each in float32, for the four of eight processes here.
    assert offloaded == pytest.approx(2 * count + 4 * 5 * count / 2, rel=0.01)


def test_four_bits_are_left_out(needs):
    four = replace(needs, policy=replace(needs.policy, lora=Lora(rank=2), quantize="nf4"))
    assert without_four_bits(four).policy == replace(four.policy, quantize=None, dtype="bfloat16")
