"""A tiny untrained model of each kind, with a processor made on the spot, in a folder that loads as any other."""

from pathlib import Path

import torch
from transformers import (
    CLIPImageProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipImageProcessor,
)

from tests.policy.tiny_glm import glm4v, glm4v_moe, glm46v
from tests.policy.tiny_hybrids import gemma4, qwen3_5, qwen3_5_moe
from tests.policy.tiny_parts import HIDDEN, SIZE, qwen_ids, text_settings, tokenizer_for
from vr1.policy import PolicySource, tiny_griffon
from vr1.policy.tiny import CHAT_TEMPLATE


def qwen2_vl():
    tokenizer = tokenizer_for("qwen2_vl")
    rope = {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [2, 3, 3]}
    config = Qwen2VLConfig(
        text_config=text_settings(tokenizer) | {"rope_parameters": rope},
        vision_config={"depth": 2, "embed_dim": 64, "hidden_size": 64, "num_heads": 4, "mlp_ratio": 2},
        **qwen_ids(tokenizer),
    )
    images, videos = Qwen2VLImageProcessor(size=SIZE), Qwen2VLVideoProcessor(size=SIZE)
    return Qwen2VLForConditionalGeneration(config), Qwen2VLProcessor(
        image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template=CHAT_TEMPLATE
    )


def qwen3_vl():
    tokenizer = tokenizer_for("qwen3_vl")
    rope = {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config=text_settings(tokenizer) | {"rope_parameters": rope},
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 4,
            "out_hidden_size": 64,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
        **qwen_ids(tokenizer),
    )
    images = Qwen2VLImageProcessor(size=SIZE, patch_size=16)
    return Qwen3VLForConditionalGeneration(config), Qwen3VLProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size=SIZE),
        chat_template=CHAT_TEMPLATE,
    )


def internvl():
    tokenizer = tokenizer_for("internvl")
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **text_settings(tokenizer)},
        vision_config={**HIDDEN, "image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    # One tile for a square image, two and a whole view for a wide one.
    images = GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=2)
    return InternVLForConditionalGeneration(config), InternVLProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size={"height": 56, "width": 56}),
        image_seq_length=4,
        chat_template=CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\n"),
    )


def paligemma():
    tokenizer = tokenizer_for("paligemma")
    config = PaliGemmaConfig(
        text_config={"model_type": "gemma", **text_settings(tokenizer)},
        vision_config={**HIDDEN, "model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=64,
    )
    images = SiglipImageProcessor(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    return PaliGemmaForConditionalGeneration(config), PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer)


def gemma3():
    """Text layers that see a window, and layers that see everything."""
    tokenizer = tokenizer_for("gemma3")
    ids = tokenizer.convert_tokens_to_ids
    windows = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    config = Gemma3Config(
        text_config={**text_settings(tokenizer), **windows},
        vision_config={**HIDDEN, "model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
    )
    return Gemma3ForConditionalGeneration(config), Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<start_of_image>"),
    )


def griffon_g():
    """Capped scores, and a window that is shorter than a prompt."""
    tokenizer = tiny_griffon.build_tokenizer()
    sizes = tiny_griffon.GriffonSizes(
        **{"hidden": 64, "layers": 3, "heads": 4, "kv_heads": 2, "intermediate": 96, "window": 16, "image": 56},
        **{"vision_hidden": 32, "vision_layers": 3, "vision_heads": 2, "vision_intermediate": 48},
    )
    return tiny_griffon.build_model(tokenizer, sizes), tiny_griffon.build_processor(tokenizer, sizes)


def llava():
    """A kind that no family and no architecture is known for."""
    tokenizer = tokenizer_for("llava")
    config = LlavaConfig(
        text_config={"model_type": "llama", **text_settings(tokenizer)},
        vision_config={**HIDDEN, "model_type": "clip_vision_model", "image_size": 28, "patch_size": 14},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    size = {"height": 28, "width": 28}
    return LlavaForConditionalGeneration(config), LlavaProcessor(
        image_processor=CLIPImageProcessor(size=size, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>"),
    )


KINDS = {
    "qwen2_vl": qwen2_vl,
    "qwen3_vl": qwen3_vl,
    "internvl": internvl,
    "paligemma": paligemma,
    "gemma3": gemma3,
    "gemma4": gemma4,
    "qwen3_5": qwen3_5,
    "qwen3_5_moe": qwen3_5_moe,
    "glm4v": glm4v,
    "glm4v_moe": glm4v_moe,
    "glm46v": glm46v,
    "griffon_g": griffon_g,
    "llava": llava,
}


def write_tiny(kind: str, folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = KINDS[kind]()
        # The usual 0.02 makes a narrow model blind: what the picture changes would drown in rounding.
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    model.generation_config.eos_token_id = model.config.get_text_config().eos_token_id
    model.generation_config.pad_token_id = model.config.get_text_config().pad_token_id
    # As released models have it: none of this may reach a rollout.
    model.generation_config.repetition_penalty = 1.5
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def source_of(kind: str, embedded: PolicySource, folder: Path) -> PolicySource:
    """The model of a kind, written to a folder; of Qwen2.5-VL the embedded one, which there is already."""
    if kind == "qwen2_5_vl":
        return embedded
    write_tiny(kind, folder)
    return PolicySource(path=str(folder))
