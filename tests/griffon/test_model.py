"""The model against its parts called by hand, its names against the released ones, and folders that cannot be read."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, CLIPVisionModel, Gemma2ForCausalLM

from tests.griffon.models import SMALL, TOWER, released_tensors, small_model, write_released
from vr1.errors import UserError
from vr1.griffon import GriffonGConfig, GriffonGForConditionalGeneration
from vr1.griffon.released import NAMES, is_left_out, to_ours, to_released
from vr1.policy import PolicySource

# Gemma 2 of 9B with a CLIP ViT-L/14 at 1022 pixels: sizes as published.
NINE_B = {
    "text_config": {
        "model_type": "gemma2",
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
    },
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 1022,
        "patch_size": 14,
    },
}


@pytest.fixture(scope="module")
def small():
    return small_model()


@pytest.fixture
def released(small, tmp_path):
    return write_released(tmp_path, *small)


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=0, rtol=0, msg=name)


@pytest.mark.parametrize(("projector", "tokens"), [("conv_reduce", 16), ("conv_reduce_wo_pad", 9)])
def test_the_forward_is_that_of_its_parts_called_by_hand(projector, tokens):
    """CLIP's second to last states without the class token, convolution, GELU, linear, then Gemma 2 on embeddings.

    The released code gives Gemma 2 of transformers 4.45 both kinds of embeddings, which multiplies both by the root of
    the width.
    """
    model, _ = small_model(replace(SMALL, projector=projector))
    model.eval()
    weights = model.state_dict()

    def part(prefix):
        return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}

    tower, projection = CLIPVisionModel(model.config.vision_config).eval(), part("model.multi_modal_projector.")
    tower.load_state_dict(part("model.vision_tower."))
    language = Gemma2ForCausalLM._from_config(model.config.text_config, attn_implementation="eager").eval()
    language.model.load_state_dict(part("model.language_model."))
    language.tie_weights()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, 56, 56, generator=generator)
    text = torch.randint(200, 1000, (2, 40), generator=generator)
    ids = torch.cat([text[:, :3], torch.full((2, tokens), 7), text[:, 3:]], dim=1)
    with torch.no_grad():
        maps = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:].transpose(1, 2).reshape(2, 32, 7, 7)
        padding = {"conv_reduce": 1, "conv_reduce_wo_pad": 0}[projector]
        maps = nn.functional.conv2d(maps, projection["conv.weight"], projection["conv.bias"], stride=2, padding=padding)
        image = nn.functional.gelu(maps).flatten(2).transpose(1, 2)
        image = image @ projection["linear.weight"].T + projection["linear.bias"]
        table = weights["model.language_model.embed_tokens.weight"]
        plain = torch.cat([table[text[:, :3]], image, table[text[:, 3:]]], dim=1)
        expected = language(inputs_embeds=plain * 64**0.5).logits
        ours = model(input_ids=ids, pixel_values=pixels).logits
        last = model(input_ids=ids, pixel_values=pixels, logits_to_keep=2).logits
    assert image.shape[1] == model.config.image_tokens == tokens
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(last, expected[:, -2:], atol=1e-5, rtol=0)
    assert expected.abs().max() > 1, "logits that differ"


def test_unused_layers_of_the_tower_are_not_trained(small, tmp_path):
    small[0].save_pretrained(tmp_path)
    for model in (small[0], GriffonGForConditionalGeneration.from_pretrained(tmp_path)):
        frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
        assert frozen == {
            name
            for name in model.state_dict()
            if name.startswith(("model.vision_tower.encoder.layers.2.", "model.vision_tower.post_layernorm."))
        }


def test_image_tokens_must_be_as_many_as_features(small):
    with pytest.raises(ValueError, match="5 image tokens, but the images have 16 features"):
        small[0](input_ids=torch.full((1, 5), 7), pixel_values=torch.zeros(1, 3, 56, 56))


def test_a_saved_model_loads_as_it_was(small, tmp_path):
    model, _ = small
    model.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    loaded, info = GriffonGForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    same(model.state_dict(), loaded.state_dict())
    assert not info["missing_keys"]
    before, after = (json.loads(text.to_json_string(use_diff=False)) for text in (model.config, loaded.config))
    # transformers notes the precision in every part of a loaded config, and where it is from.
    for part in (before, after, *(config[name] for config in (before, after) for name in model.config.sub_configs)):
        part.pop("dtype")
        part.pop("_name_or_path")
    assert before == after


def test_released_weights_load_through_the_auto_classes(small, released):
    model, _ = small
    config = AutoConfig.from_pretrained(released)
    assert type(config) is GriffonGConfig
    assert config.vision_config.image_size == 56
    assert config.text_config.layer_types == ["sliding_attention", "full_attention"]
    assert config.text_config.rope_parameters["rope_theta"] == 10000.0
    assert type(GriffonGConfig.from_pretrained(released)) is GriffonGConfig
    for auto in (AutoModelForImageTextToText, GriffonGForConditionalGeneration):
        loaded = auto.from_pretrained(released)
        same(model.state_dict(), loaded.state_dict())
        assert loaded.generation_config.eos_token_id == [107, 1]
    assert loaded.lm_head.weight is loaded.model.language_model.embed_tokens.weight


def test_a_released_model_is_saved_under_the_names_of_vr1(small, released, tmp_path):
    loaded = GriffonGForConditionalGeneration.from_pretrained(released)
    loaded.save_pretrained(tmp_path / "ours")
    names = load_file(tmp_path / "ours" / "model.safetensors").keys()
    assert names == small[0].state_dict().keys() - {"lm_head.weight"}
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours")
    same(small[0].state_dict(), again.state_dict())
    assert again.generation_config.eos_token_id == [107, 1]


def test_what_is_left_out_is_counted(released, caplog):
    GriffonGForConditionalGeneration.from_pretrained(released)
    [line] = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert line.startswith(f"{released}: 2 tensors of a second image encoder")


def test_an_output_layer_in_the_file_is_read_too(small, released):
    index = json.loads((released / "model.safetensors.index.json").read_text())
    file = released / "model-00001-of-00002.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = small[0].lm_head.weight.detach().clone()
    save_file(tensors, file, metadata={"format": "pt"})
    index["weight_map"]["lm_head.weight"] = file.name
    (released / "model.safetensors.index.json").write_text(json.dumps(index))
    same(small[0].state_dict(), GriffonGForConditionalGeneration.from_pretrained(released).state_dict())


def test_names_go_both_ways(small):
    names = [*small[0].state_dict()]
    assert [to_ours(to_released(name)) for name in names] == names
    theirs = [name for name in released_tensors(small[0]) if not is_left_out(name)]
    assert [to_released(to_ours(name)) for name in theirs] == theirs
    assert len({*map(to_released, names)}) == len(names)
    for name in ("model.image_newline", "model.mm_projector2.weight"):
        with pytest.raises(UserError, match=f"{name} is no tensor of Griffon-G"):
            to_ours(name)


def test_the_real_sizes_of_9b_are_those_of_the_table():
    """On the meta device: every tensor has a name of the release, and the parts are as large as published."""
    with torch.device("meta"):
        model = GriffonGForConditionalGeneration(GriffonGConfig(**NINE_B))
    counts = dict.fromkeys([theirs for theirs, _ in NAMES], 0)
    for name, weight in model.named_parameters():
        theirs = to_released(name)
        assert to_ours(theirs) == name
        [row] = [row for row in counts if theirs.startswith(row)]
        counts[row] += weight.numel()
    assert model.config.image_tokens == 1369
    # Gemma 2 9B, by the formula of its parts: 42 layers of attention, gated MLP and four norms.
    layer = 3584 * 256 * (16 + 8 + 8) + 16 * 256 * 3584 + 3 * 3584 * 14336 + 4 * 3584
    assert counts["model.layers."] == 42 * layer
    assert counts["model.embed_tokens."] == 256000 * 3584
    # CLIP ViT-L/14 of 303,179,776 parameters at 224 pixels, with 5,330 positions in the place of 257.
    assert counts["model.vision_tower.vision_tower.vision_model."] == 303_179_776 + (5330 - 257) * 1024
    assert counts["model.mm_projector."] == 3584 * (1024 * 9 + 1) + 3584 * (3584 + 1)
    assert counts["lm_head."] == 0, "tied to the embedding"
    # Gemma 2 9B has 9,241,705,984 parameters.
    assert sum(counts.values()) == 9_241_705_984 + 308_374_528 + 45_882_368 == 9_595_962_880
    assert sum(weight.numel() for weight in model.parameters()) == sum(counts.values())
    # With the other projector the convolution is the same, and the map of patches shrinks to 36 x 36.
    assert GriffonGConfig(**NINE_B, projector_type="conv_reduce_wo_pad").image_tokens == 1296


def change(file, **changed):
    written = json.loads(file.read_text()) | changed
    file.write_text(json.dumps({key: value for key, value in written.items() if value is not None}))


def test_missing_and_left_over_tensors_are_listed(released):
    index = released / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"]
    lost, extra = "model.layers.1.mlp.up_proj.weight", "model.layers.9.mlp.up_proj.weight"
    file = released / names[lost]
    tensors = load_file(file)
    tensors[extra] = tensors.pop(lost)
    save_file(tensors, file, metadata={"format": "pt"})
    change(index, weight_map={extra if name == lost else name: file for name, file in names.items()})
    pattern = (
        r"Griffon-G-gemma2-9B: its tensors are not those of Griffon-G: 1 missing"
        r" \(model\.language_model\.layers\.1\.mlp\.up_proj\.weight\); 1 left over"
        r" \(model\.language_model\.layers\.9\.mlp\.up_proj\.weight\)"
    )
    with pytest.raises(UserError, match=pattern):
        AutoModelForImageTextToText.from_pretrained(released)


def refused(folder, pattern):
    """The error that a training would report before it loads weights."""
    with pytest.raises(UserError, match=pattern) as caught:
        PolicySource(path=str(folder)).check()
    assert "\n" not in str(caught.value)


def test_a_missing_clip_config_is_one_error(released, tmp_path):
    (tmp_path / TOWER / "config.json").unlink()
    refused(
        released, rf"mm_vision_tower=checkpoints/{TOWER}\) is missing; copy config\.json .*/{TOWER} \(weights are not"
    )


def test_the_towers_folder_may_be_inside(released, tmp_path):
    shutil.move(tmp_path / TOWER, released / TOWER)
    PolicySource(path=str(released)).check()


def test_a_missing_image_processor_is_one_error(released, tmp_path):
    (tmp_path / TOWER / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=rf"{TOWER}: its preprocessor_config\.json cannot be read"):
        PolicySource(path=str(released)).processor()


@pytest.mark.parametrize("projector", ["mlp2x_gelu", "resampler", None])
def test_another_projector_is_one_error(released, projector):
    change(released / "config.json", mm_projector_type=projector)
    refused(released, rf"config\.json: the projector {projector or 'linear'} is not that of Griffon-G \(conv_reduce, ")


def test_features_of_the_class_token_are_one_error(released):
    change(released / "config.json", mm_vision_select_feature="cls_patch")
    refused(released, "mm_vision_select_feature=cls_patch is not that of Griffon-G")


@pytest.mark.parametrize("kind", ["llama2_Griffon", "qwen2_Griffon"])
def test_a_folder_of_griffon_v2_is_one_error(released, kind):
    change(released / "config.json", model_type=kind)
    refused(released, rf"config\.json: {kind} is an earlier Griffon, or one around another language model")


def test_a_folder_of_griffon_v1_is_one_error(released):
    change(released / "config.json", model_type="llava", mm_projector_type="mlp2x_gelu")
    refused(released, r"llava weights in the layout of LLaVA's code, as those of Griffon v1; give Griffon-G's")


def test_a_clip_config_of_another_size_is_one_error(released, tmp_path):
    change(tmp_path / TOWER / "config.json", image_size=112)
    with pytest.raises(
        UserError, match=r"1 of another size \(.*position_embedding\.weight: \[50, 32\] in the file, \[197, "
    ):
        PolicySource(path=str(released)).load()


def test_an_unknown_language_model_is_one_error():
    with pytest.raises(UserError, match="text_config: gpt2 is no language model of Griffon-G; give one of gemma2"):
        GriffonGConfig(text_config={"model_type": "gpt2"})


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_other_language_models_in_the_same_arrangement(kind, tmp_path):
    """Embeddings are not multiplied, logits are not capped."""
    text = {"model_type": kind, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 300}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = GriffonGConfig(text_config=text, vision_config=vision | {"image_size": 56, "patch_size": 8})
    model = GriffonGForConditionalGeneration(config).eval()
    ids, pixels = torch.tensor([[1, *[7] * 16, 20, 21]]), torch.ones(1, 3, 56, 56)
    with torch.no_grad():
        features = model.get_image_features(pixels)
        plain = model.model.multi_modal_projector(features.last_hidden_state)
        torch.testing.assert_close(features.pooler_output, plain)
        embedded = model.get_input_embeddings()(ids)
        embedded[:, 1:17] = plain
        expected = model.lm_head(model.model.language_model(inputs_embeds=embedded).last_hidden_state)
        torch.testing.assert_close(model(input_ids=ids, pixel_values=pixels).logits, expected)
    model.save_pretrained(tmp_path)
    same(model.state_dict(), AutoModelForImageTextToText.from_pretrained(tmp_path).state_dict())
