"""A small Griffon-G through whole trainings: GRPO, SFT, credit for each box, adapters, 4 bits, resume, export."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.checkpoints import test_resume as resume
from tests.griffon.models import SMALL, TrueBoxes, released_tensors, small_model, write_released
from tests.modules.test_grpo import build, fit, weights
from vr1.advantage import BoxAdvantage
from vr1.cli import main
from vr1.griffon import released_folder
from vr1.modules.sft import SFTModule
from vr1.policy import Lora, PolicySource
from vr1.policy.architectures import architecture_of
from vr1.prompts import PromptEncoder
from vr1.rewards import Criterion, Reward
from vr1.rollout import Sampling, generate

pytestmark = pytest.mark.filterwarnings("ignore:The .*_dataloader' does not have many workers")
WINDOWS = [4, 16, 70, 4096]
KINDS = {"full": {}, "lora": {"lora": Lora(rank=2)}, "qlora": {"lora": Lora(rank=2), "quantize": "nf4"}}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Random weights in the released layout."""
    return write_released(tmp_path_factory.mktemp("released"), *small_model())


@pytest.fixture
def source(released):
    return PolicySource(path=str(released))


@pytest.mark.parametrize("window", WINDOWS)
def test_rows_that_share_a_prompt_equal_rows_of_their_own(window, records, ragged_completions, tmp_path):
    """Log-probs, entropies and gradients; the windows end in a completion, in each prompt, in one, or nowhere."""
    model, processor = small_model(replace(SMALL, window=window, layers=4))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    source = PolicySource(path=str(tmp_path))
    prompts = PromptEncoder(source.processor(), source.family(), 1024)(records)
    lengths = prompts.mask.sum(1)
    assert lengths.unique().numel() > 1, "prompts are padded"
    assert window > int(lengths.max()) + 9 or window < int(lengths.max())
    tokens, mask = ragged_completions
    weights_of_tokens = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))
    results, gradients = [], []
    for share in (None, False):
        policy = replace(source, share_prompt=share).load()
        assert policy.shares_prompt is (share is None)
        log_probs, entropy = policy.log_probs(prompts, tokens, mask, temperature=0.8)
        (log_probs * weights_of_tokens).sum().backward()
        results.append((log_probs.detach(), entropy))
        gradients.append({name: value.grad for name, value in policy.named_parameters() if value.grad is not None})
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert gradients[0].keys() == gradients[1].keys()
    assert "network.model.vision_tower.encoder.layers.0.mlp.fc1.weight" in gradients[0]
    assert "network.model.multi_modal_projector.conv.weight" in gradients[0]
    for name, theirs in gradients[1].items():
        assert float((gradients[0][name] - theirs).abs().max()) < 1e-4 * max(float(theirs.abs().max()), 1.0), name


@pytest.mark.parametrize("window", WINDOWS)
def test_both_ways_sample_the_same_completions(window, records, tmp_path):
    model, processor = small_model(replace(SMALL, window=window))
    # Ends at many tokens, so that rows finish at different times.
    model.generation_config.eos_token_id = list(range(300, 420))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    source = PolicySource(path=str(tmp_path))
    prompts = PromptEncoder(source.processor(), source.family(), 1024)(records)
    rollouts = [
        generate(
            replace(source, share_prompt=share).load().eval(),
            prompts,
            Sampling(group_size=3, max_new_tokens=24),
            processor.tokenizer,
        )
        for share in (None, False)
    ]
    shared, plain = rollouts
    assert shared.mask.tolist() == plain.mask.tolist()
    assert len({*shared.mask.sum(-1).flatten().tolist()}) > 2
    assert shared.tokens[shared.mask].tolist() == plain.tokens[plain.mask].tolist()
    torch.testing.assert_close(shared.log_probs, plain.log_probs, atol=1e-4, rtol=0)


def test_a_plain_call_of_a_policy_that_shares_is_capped_too(source):
    """Sharing replaces the attention function; a call without it must still be Gemma 2's."""
    plain, shared = (replace(source, share_prompt=share).load().eval() for share in (False, True))
    ids = torch.randint(200, 1000, (2, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    with torch.no_grad():
        ours, theirs = (policy.network(input_ids=ids, attention_mask=mask).logits for policy in (shared, plain))
        torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], atol=1e-5, rtol=0)
        without = (policy.network(input_ids=ids).logits for policy in (shared, plain))
        torch.testing.assert_close(*without, atol=1e-5, rtol=0)
        text = plain.base.config.text_config
        text.attn_logit_softcapping = 1e-3
        for layer in plain.base.model.language_model.layers:
            layer.self_attn.attn_logit_softcapping = 1e-3
        assert (plain.network(input_ids=ids).logits - ours).abs().max() > 1e-2, "the cap matters"


def test_layers_of_another_kind_share_no_rows(source):
    config = source.load().base.config
    assert architecture_of(config) is not None
    config.text_config.layer_types = ["full_attention", "linear_attention"]
    assert architecture_of(config) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_grpo_step(source, kind, tmp_path):
    module = build(replace(source, **KINDS[kind], gradient_checkpointing=True))
    module.configure_model()
    before = weights(module)
    trainer = fit(module, tmp_path, steps=1)
    assert torch.isfinite(trainer.callback_metrics["grpo/loss"])
    changed = {name for name, value in weights(module).items() if (before[name] != value).any()}
    assert changed
    if kind != "full":
        assert all("lora_" in name and ".language_model." in name for name in changed)


def test_credit_for_each_box(source, tmp_path):
    """An untrained model writes no boxes, so the answers of the rollout are true boxes that are moved at random."""
    reward = Reward(criterion=Criterion(0.5, 0.0, 1.0))
    advantage = BoxAdvantage(answer_weight=0.0)
    module = build(source, advantage=advantage, reward=reward, sampler=TrueBoxes(moved=0.03))
    module.configure_model()
    before = weights(module)
    trainer = fit(module, tmp_path, steps=1)
    assert trainer.callback_metrics["reward/dual_format"] == 1
    assert any((before[name] != value).any() for name, value in weights(module).items())


@pytest.mark.parametrize("kind", KINDS)
def test_an_sft_step(source, kind, tmp_path):
    module = SFTModule(policy=replace(source, **KINDS[kind]), optimizer=partial(torch.optim.AdamW, lr=1e-2))
    module.configure_model()
    before = weights(module)
    trainer = fit(module, tmp_path, steps=1)
    assert torch.isfinite(trainer.callback_metrics["sft/loss"])
    assert any((before[name] != value).any() for name, value in weights(module).items())


def test_targets_end_with_the_end_of_the_turn(source, records):
    processor = source.processor()
    encoder = PromptEncoder(processor, source.family(), 1024)
    policy = source.load()
    tokens, mask = encoder.targets(encoder(records), policy.eos_tokens[0])
    last = tokens[:, 0].gather(1, mask[:, 0].sum(1, keepdim=True) - 1)
    assert last.flatten().tolist() == [107] * 3
    text = processor.tokenizer.decode(tokens[0, 0][mask[0, 0]], skip_special_tokens=True)
    assert text == source.family().write(
        source.family().from_image(records[0].boxes_xyxy, records[0].image_size, (56, 56)), records[0].labels
    )


@pytest.mark.parametrize("make", [resume.grpo, resume.sft])
def test_a_resumed_training_is_the_same_to_the_last_bit(source, make, tmp_path):
    [whole], end = resume.fit(make(source), tmp_path / "whole", save=tmp_path / "three.ckpt")
    [resumed], resumed_end = resume.fit(make(source), tmp_path / "second", ckpt_path=tmp_path / "three.ckpt")
    resume.assert_goes_on(resumed, whole[resume.STOP :])
    resume.assert_same(resumed_end, end)


@pytest.fixture(scope="module")
def trained(released, tmp_path_factory):
    """A run of all weights and one of adapters: the trained network and its checkpoint."""
    made = {}
    for kind in ("full", "lora"):
        folder = tmp_path_factory.mktemp(kind)
        module = SFTModule(
            policy=PolicySource(path=str(released), **KINDS[kind]), optimizer=partial(torch.optim.AdamW, lr=1e-2)
        )
        trainer = fit(module, folder, steps=2)
        trainer.save_checkpoint(folder / "last.ckpt")
        made[kind] = module.policy.network.eval(), folder / "last.ckpt"
    return made


def export(ckpt, out, *arguments):
    assert main(["export", "--ckpt", str(ckpt), "--out", str(out), *arguments]) == 0
    return out


@torch.no_grad()
def logits(network, folder, records):
    source = PolicySource(path=str(folder))
    prompts = PromptEncoder(AutoProcessor.from_pretrained(folder), source.family(), 1024)(records[:1])
    return network.eval()(input_ids=prompts.tokens, attention_mask=prompts.mask.long(), **prompts.vision).logits


def test_an_exported_run_answers_as_it_was_trained(trained, released, records, tmp_path):
    for kind, (network, ckpt) in trained.items():
        folder = export(ckpt, tmp_path / kind)
        expected = logits(network, released, records)
        if kind == "lora":
            base = AutoModelForImageTextToText.from_pretrained(released)
            loaded = PeftModel.from_pretrained(base, folder)
        else:
            loaded = AutoModelForImageTextToText.from_pretrained(folder)
        torch.testing.assert_close(logits(loaded, released, records), expected, atol=1e-5, rtol=1e-5)
        card = (folder / "README.md").read_text()
        assert "import vr1.griffon  # registers the model's class\nfrom PIL import Image" in card
        if kind == "full":
            torch.testing.assert_close(logits(loaded, folder, records), expected, atol=1e-5, rtol=1e-5)
        plain = AutoModelForImageTextToText.from_pretrained(released)
        assert (logits(plain, released, records) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_an_exported_run_can_have_the_released_names(trained, released, records, kind, tmp_path):
    network, ckpt = trained[kind]
    folder = export(ckpt, tmp_path / "out", "--released", *(["--merge"] if kind == "lora" else []))
    tensors = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    before = {name: value for file in released.glob("*.safetensors") for name, value in load_file(file).items()}
    assert tensors.keys() == before.keys()
    for name in before:
        if name.startswith(("model.prompt_", "model.vision_tower.vision_tower.vision_model.post_layernorm")):
            assert torch.equal(tensors[name], before[name]), name
    assert any(not torch.equal(tensors[name], before[name]) for name in before)
    theirs, ours = (json.loads((where / "config.json").read_text()) for where in (released, folder))
    assert {key: ours[key] for key in theirs if key in ours} == theirs
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    torch.testing.assert_close(
        logits(loaded, folder, records), logits(network, released, records), atol=1e-4, rtol=1e-4
    )


def test_released_to_ours_to_released_is_the_identity(released, tmp_path):
    """Every tensor, those of the second image encoder included."""
    loaded = AutoModelForImageTextToText.from_pretrained(released)
    released_folder.write_released(loaded, AutoProcessor.from_pretrained(released), tmp_path, str(released))
    before = released_tensors(small_model()[0])
    after = {name: value for file in tmp_path.glob("*.safetensors") for name, value in load_file(file).items()}
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def test_released_names_need_a_whole_griffon(trained, tiny_model, tmp_path, capsys):
    _, ckpt = trained["lora"]
    assert main(["export", "--ckpt", str(ckpt), "--out", str(tmp_path / "a"), "--released"]) == 2
    assert "--released writes a full model, and this run trained adapters; add --merge" in capsys.readouterr().err
    module = SFTModule(policy=PolicySource(path=str(tiny_model)), optimizer=partial(torch.optim.AdamW, lr=1e-2))
    fit(module, tmp_path / "qwen", steps=1).save_checkpoint(tmp_path / "qwen.ckpt")
    assert main(["export", "--ckpt", str(tmp_path / "qwen.ckpt"), "--out", str(tmp_path / "b"), "--released"]) == 2
    assert "a qwen2_5_vl model has no released names; only Griffon-G" in capsys.readouterr().err
