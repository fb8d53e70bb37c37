"""Other kinds of models: rows that share a prompt against rows of their own, and whole GRPO steps."""

import copy
import json
import warnings
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig

from tests.modules.test_grpo import build, fit, weights
from tests.policy.tiny_models import write_tiny
from vr1.data import SceneDataModule, SceneStyle
from vr1.families import (
    GLM4V,
    CustomFamily,
    Gemma,
    Griffon,
    InternVL,
    ItemGrammar,
    PaliGemma,
    Qwen2VL,
    Qwen3VL,
    Qwen25VL,
    Wording,
)
from vr1.policy import Lora, PolicySource
from vr1.policy.architectures import architecture_of
from vr1.prompts import PromptEncoder
from vr1.rollout import Sampling, generate

SHARING = ["qwen2_vl", "qwen3_vl", "internvl", "glm4v", "glm4v_moe", "glm46v", "griffon_g"]
# An image that sees itself both ways, a window, a recurrent state.
UNSHARED = ["paligemma", "gemma3", "gemma4", "qwen3_5", "qwen3_5_moe"]
FAMILIES = {
    "qwen2_vl": Qwen2VL,
    "qwen3_vl": Qwen3VL,
    "internvl": InternVL,
    "glm4v": GLM4V,
    "glm4v_moe": GLM4V,
    "glm46v": GLM4V,
    "paligemma": PaliGemma,
    "gemma3": Gemma,
    "gemma4": Gemma,
    "qwen3_5": Qwen3VL,
    "qwen3_5_moe": Qwen3VL,
    "griffon_g": Griffon,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            write_tiny(kind, made[kind])
        return PolicySource(path=str(made[kind]))

    return folder


@pytest.fixture
def source(request, folders):
    return folders(request.param)


def prompts_of(source, records):
    return PromptEncoder(source.processor(), source.family(), 1024)(records)


each_sharing = pytest.mark.parametrize("source", SHARING, indirect=True)
each_unshared = pytest.mark.parametrize("source", UNSHARED, indirect=True)
every_kind = pytest.mark.parametrize("source", FAMILIES, indirect=True)


@every_kind
def test_a_family_is_chosen_by_the_config_and_can_be_overridden(source):
    source.check()
    kind = source.config().model_type
    assert type(source.family()) is FAMILIES[kind]
    assert type(build(source).family) is FAMILIES[kind]
    assert isinstance(build(source, family=Griffon()).family, Griffon)


@pytest.mark.parametrize("source", ["llava"], indirect=True)
def test_a_model_without_a_family_asks_for_one(source):
    source.check()
    with pytest.raises(ValueError, match=r"no family is known for a llava model .* family\.class_path"):
        build(source)


def test_a_model_of_another_name_has_the_family_of_its_config(tmp_path):
    """MiMo-VL is Qwen2.5-VL with another language model."""
    config = {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"]}
    config["text_config"] = {"hidden_size": 4096, "num_hidden_layers": 36, "head_dim": 128, "vocab_size": 151680}
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = PolicySource(path=str(tmp_path))
    assert type(source.family()) is Qwen25VL
    assert architecture_of(source.config()) is not None


def test_an_encoder_with_a_decoder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "florence2"}')
    with pytest.raises(ValueError, match="a florence2 model is an encoder-decoder"):
        PolicySource(path=str(tmp_path)).check()


@every_kind
def test_a_prompt_holds_its_image(source, records):
    prompts = prompts_of(source, records)
    assert min(prompts.image_tokens) > 0
    for row, record in enumerate(records):
        alone = prompts_of(source, [record])
        assert prompts.tokens[row][prompts.mask[row]].tolist() == alone.tokens[0].tolist()
        assert prompts.input_sizes[row] == alone.input_sizes[0]
        for name, value in prompts.vision_of(row).items():
            torch.testing.assert_close(value, alone.vision[name])


@each_sharing
def test_rows_that_share_a_prompt_equal_rows_of_their_own(source, records, ragged_completions):
    prompts = prompts_of(source, records)
    tokens, mask = ragged_completions
    shared = source.load()
    plain = replace(source, share_prompt=False).load()
    assert shared.shares_prompt
    assert not plain.shares_prompt
    weights = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))
    results = []
    for policy in (shared, plain):
        log_probs, entropy = policy.log_probs(prompts, tokens, mask, temperature=0.8)
        (log_probs * weights).sum().backward()
        results.append((log_probs.detach(), entropy))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
        assert ours[~mask].abs().sum() == 0
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            scale = float(parameter.grad.abs().max())
            assert float((shared.get_parameter(name).grad - parameter.grad).abs().max()) < 1e-3 * scale + 1e-5, name


@each_sharing
def test_the_image_matters(source, records):
    prompts = prompts_of(source, records)
    other = copy.copy(prompts)
    other.vision = {**prompts.vision, "pixel_values": prompts.vision["pixel_values"].flip(0)}
    tokens, mask = torch.full((3, 1, 2), 30), torch.ones(3, 1, 2, dtype=torch.bool)
    with torch.no_grad():
        policy = source.load().eval()
        difference = policy.log_probs(prompts, tokens, mask)[0] - policy.log_probs(other, tokens, mask)[0]
    assert difference.abs().max() > 1e-3


@each_sharing
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}], ids=str)
def test_both_ways_sample_the_same_completions(source, records, settings):
    prompts, tokenizer = prompts_of(source, records), source.processor().tokenizer
    sampling = Sampling(group_size=2, max_new_tokens=8, **settings)
    rollouts = []
    for share in (None, False):
        policy = replace(source, share_prompt=share).load().eval()
        policy.base.generation_config.eos_token_id = list(range(200, 260))
        rollouts.append(generate(policy, prompts, sampling, tokenizer, draw=2))
    shared, plain = rollouts
    assert shared.mask.tolist() == plain.mask.tolist()
    assert shared.tokens[shared.mask].tolist() == plain.tokens[plain.mask].tolist()
    assert shared.finished.tolist() == plain.finished.tolist()
    assert shared.texts == plain.texts


UNKNOWN = CustomFamily(frame=1000, wording=Wording(one="Find every {categories}."), grammar=ItemGrammar())


@pytest.mark.parametrize("source", [*FAMILIES, "llava"], indirect=True)
def test_a_whole_grpo_step_and_an_evaluation(source, tmp_path):
    is_known = AutoConfig.from_pretrained(source.path).model_type in FAMILIES
    module = build(source, family=None if is_known else UNKNOWN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.configure_model()
    before = weights(module)
    trainer = fit(module, tmp_path, steps=1)
    assert torch.isfinite(trainer.callback_metrics["grpo/loss"])
    assert any((before[name] != value).any() for name, value in weights(module).items())
    data = SceneDataModule(SceneStyle(), train_scenes=2, val_scenes=2, eval_batch_size=2, num_workers=0)
    trainer.limit_val_batches = 1
    [figures] = trainer.validate(module, data, verbose=False)
    assert "val/map" in figures


@each_sharing
def test_adapters_and_a_frozen_tower(source, records, ragged_completions):
    policy = replace(source, lora=Lora(rank=2), gradient_checkpointing=True).load()
    policy.log_probs(prompts_of(source, records), *ragged_completions)[0].sum().backward()
    trained = {name: value for name, value in policy.named_parameters() if value.requires_grad}
    assert all("lora_" in name and ".language_model." in name for name in trained)
    assert any(value.grad.abs().sum() > 0 for name, value in trained.items() if "lora_B" in name)
    frozen = replace(source, freeze_vision=True).load()
    still = [name for name, value in frozen.named_parameters() if not value.requires_grad]
    assert still
    assert not any(".language_model." in name or "lm_head" in name for name in still)


@each_unshared
def test_rows_that_cannot_be_shared_say_so(source):
    kind = source.config().model_type
    with pytest.warns(UserWarning, match=f"a {kind} model computes image and prompt once per completion"):
        source.load()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert not replace(source, share_prompt=False).load().shares_prompt
    with pytest.raises(ValueError, match=rf"policy\.share_prompt=true: .* {kind}"):
        replace(source, share_prompt=True).load()


@pytest.mark.parametrize("source", ["qwen2_vl"], indirect=True)
def test_layers_that_see_a_window_share_no_rows(source):
    config = source.load().base.config
    assert architecture_of(config) is not None
    config.get_text_config().layer_types = ["full_attention", "sliding_attention"]
    assert architecture_of(config) is None


@pytest.mark.parametrize("source", ["internvl"], indirect=True)
def test_the_resolution_of_tiles(source, records):
    one = prompts_of(replace(source, max_pixels=56 * 56), records)
    assert set(one.image_tokens) == {4}
    assert set(one.input_sizes) == {(56, 56)}
    two = prompts_of(replace(source, min_pixels=2 * 56 * 56, max_pixels=2 * 56 * 56), records)
    assert all(
        tokens == 12 and {*size} == {56, 112} for tokens, size in zip(two.image_tokens, two.input_sizes, strict=True)
    )
    with pytest.raises(ValueError, match="min_pixels=6272 is more than max_pixels=3136"):
        replace(source, min_pixels=2 * 56 * 56, max_pixels=56 * 56).processor()


@pytest.mark.parametrize("source", ["glm4v"], indirect=True)
def test_the_resolution_of_a_processor_that_counts_two_frames(source, records):
    sizes = prompts_of(replace(source, min_pixels=56 * 56, max_pixels=56 * 56), records).input_sizes
    assert max(width * height for width, height in sizes) <= 56 * 56
    assert (56, 56) in sizes


@pytest.mark.parametrize("source", ["gemma4"], indirect=True)
def test_the_resolution_of_a_processor_with_a_number_of_tokens(source, records):
    # A token is 12 x 12 pixels of this tiny model.
    small, large = (prompts_of(replace(source, max_pixels=tokens * 144), records) for tokens in (100, 300))
    assert max(small.image_tokens) <= 70 < min(large.image_tokens) <= max(large.image_tokens) <= 280
    for prompts in (small, large):
        areas = [width * height for width, height in prompts.input_sizes]
        assert areas == [tokens * 144 for tokens in prompts.image_tokens]
        for (width, height), record in zip(prompts.input_sizes, records, strict=True):
            assert width / height == pytest.approx(record.image.width / record.image.height, rel=0.2)
    with pytest.raises(ValueError, match="max_pixels=500: this model takes at least 10080 pixels"):
        replace(source, max_pixels=500).processor()
    with pytest.raises(ValueError, match=r"min_pixels=500: the Gemma4ImageProcessor .* leave it out"):
        replace(source, min_pixels=500).processor()


@pytest.mark.parametrize("source", ["paligemma"], indirect=True)
def test_a_resolution_that_cannot_be_set_is_refused(source):
    with pytest.raises(ValueError, match="resizes every image"):
        replace(source, max_pixels=56 * 56).processor()


@pytest.mark.parametrize("source", ["qwen2_vl"], indirect=True)
def test_markers_stay_in_the_text(source, records):
    prompts, tokenizer = prompts_of(source, records), source.processor().tokenizer
    policy = source.load().eval()
    head = policy.base.lm_head
    policy.base.lm_head = torch.nn.Linear(head.in_features, head.out_features)
    with torch.no_grad():
        policy.base.lm_head.weight.zero_()
        policy.base.lm_head.bias.fill_(-1e3)
        # Equally likely: a marker of an answer, a special token that is none, and the end.
        ids = tokenizer.convert_tokens_to_ids(["<|box_start|>", "<|endoftext|>", "<|im_end|>"])
        policy.base.lm_head.bias[torch.tensor(ids)] = 0.0
    rollout = generate(policy, prompts, Sampling(group_size=4, max_new_tokens=4), tokenizer)
    assert set(rollout.tokens[rollout.mask].tolist()) == set(ids)
    assert {text.replace("<|box_start|>", "") for group in rollout.texts for text in group} == {""}
    assert any(text for group in rollout.texts for text in group)


@each_unshared
@pytest.mark.filterwarnings("ignore:policy. a ")
def test_rows_of_their_own_equal_a_loop_without_cache(source, records):
    policy = source.load().eval()
    prompts = prompts_of(source, records)
    sampling = Sampling(group_size=1, max_new_tokens=5, temperature=0.0)
    with torch.no_grad():
        rollout = generate(policy, prompts, sampling, source.processor().tokenizer)
        log_probs, _ = policy.log_probs(prompts, rollout.tokens, rollout.mask)
        for row, record in enumerate(records):
            alone = prompts_of(source, [record])
            tokens, types = alone.tokens, alone.token_types
            for step in range(int(rollout.mask[row, 0].sum())):
                kinds = {alone.types_name: types}
                logits = policy.network(
                    input_ids=tokens, attention_mask=torch.ones_like(tokens), **kinds, **alone.vision
                ).logits[0, -1]
                token = int(rollout.tokens[row, 0, step])
                expected = float(logits.log_softmax(0)[token])
                assert expected == pytest.approx(float(log_probs[row, 0, step]), abs=1e-4)
                logits[torch.tensor(policy.forbidden_tokens)] = -torch.inf
                assert int(logits.argmax()) == token
                tokens = torch.cat([tokens, rollout.tokens[row, :, step : step + 1]], dim=1)
                # PaliGemma's answer is of another type than its prompt.
                types = torch.cat([types, torch.full((1, 1), int(source.config().model_type == "paligemma"))], dim=1)
