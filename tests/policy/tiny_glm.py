"""Tiny models of GLM-4.1V, of GLM-4.5V with experts, and of GLM-4.6V."""

from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessor,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    Glm46VConfig,
    Glm46VForConditionalGeneration,
    Glm46VImageProcessor,
    Glm46VProcessor,
    Glm46VVideoProcessor,
)

from tests.policy.tiny_parts import text_settings, tokenizer_for
from vr1.policy.tiny import CHAT_TEMPLATE

# Its processor counts the pixels of two frames.
SIZE = {"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 112 * 112}
VISION = {"depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "out_hidden_size": 64}
ROPE = {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}


def _tokens(tokenizer):
    names = {
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
    }
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


IMAGE = "<|begin_of_image|><|image|><|end_of_image|>"
TEMPLATE = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", IMAGE)


def _processor(tokenizer):
    return Glm4vProcessor(
        image_processor=Glm4vImageProcessor(size=SIZE),
        tokenizer=tokenizer,
        video_processor=Glm4vVideoProcessor(size=SIZE),
        chat_template=TEMPLATE,
    )


def glm4v():
    tokenizer = tokenizer_for("glm4v")
    config = Glm4vConfig(
        text_config=text_settings(tokenizer) | {"rope_parameters": ROPE},
        vision_config={**VISION, "image_size": 56},
        **_tokens(tokenizer),
    )
    return Glm4vForConditionalGeneration(config), _processor(tokenizer)


def glm4v_moe():
    tokenizer = tokenizer_for("glm4v")
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
    config = Glm4vMoeConfig(
        text_config=text_settings(tokenizer) | {"rope_parameters": ROPE, "head_dim": 16, **experts},
        vision_config={**VISION, "image_size": 56},
        **_tokens(tokenizer),
    )
    return Glm4vMoeForConditionalGeneration(config), _processor(tokenizer)


def glm46v():
    tokenizer = tokenizer_for("glm4v")
    config = Glm46VConfig(
        text_config={"model_type": "glm4v_text", **text_settings(tokenizer), "rope_parameters": ROPE},
        vision_config={"model_type": "glm4v_vision", **VISION, "image_size": 56},
        **_tokens(tokenizer),
    )
    return Glm46VForConditionalGeneration(config), Glm46VProcessor(
        image_processor=Glm46VImageProcessor(size=SIZE),
        tokenizer=tokenizer,
        video_processor=Glm46VVideoProcessor(size=SIZE),
        chat_template=TEMPLATE,
    )
