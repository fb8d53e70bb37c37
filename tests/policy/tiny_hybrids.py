"""Tiny models whose layers are of two kinds, which cannot share a prompt: Qwen3.5 and Gemma 4."""

from transformers import (
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4VideoProcessor,
    Qwen2VLImageProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tests.policy.tiny_parts import HIDDEN, SIZE, qwen_ids, text_settings, tokenizer_for
from vr1.policy.tiny import CHAT_TEMPLATE

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def qwen3_5(experts=None):
    """A layer with a recurrent state, and one that sees everything."""
    tokenizer = tokenizer_for("qwen3_5")
    rope = {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    config = (Qwen3_5MoeConfig if experts else Qwen3_5Config)(
        text_config={
            **text_settings(tokenizer),
            "rope_parameters": rope | {"partial_rotary_factor": 1.0},
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            **(experts or {}),
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 4,
            "out_hidden_size": 64,
            "num_position_embeddings": 16,
        },
        **qwen_ids(tokenizer),
    )
    model = (Qwen3_5MoeForConditionalGeneration if experts else Qwen3_5ForConditionalGeneration)(config)
    return model, Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=SIZE, patch_size=16),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size=SIZE),
        chat_template=CHAT_TEMPLATE,
    )


def qwen3_5_moe():
    """The same with experts."""
    return qwen3_5(EXPERTS | {"shared_expert_intermediate_size": 32})


def gemma4():
    """A layer that sees a window, and one that sees everything; images keep their shape."""
    tokenizer = tokenizer_for("gemma4")
    ids = tokenizer.convert_tokens_to_ids
    tokens = {"boi_token_id": "<|image>", "eoi_token_id": "<image|>", "image_token_id": "<|image|>"}
    tokens |= {"boa_token_id": "<|audio>", "eoa_token_index": "<audio|>", "audio_token_id": "<|audio|>"}
    settings = text_settings(tokenizer)
    config = Gemma4Config(
        text_config={
            **settings,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": settings["vocab_size"],
            "use_bidirectional_attention": "vision",
        },
        vision_config={**HIDDEN, "num_key_value_heads": 4, "head_dim": 16, "patch_size": 4, "pooling_kernel_size": 3},
        audio_config=None,
        **{name: ids(token) for name, token in tokens.items()},
        video_token_id=len(tokenizer),
    )
    return Gemma4ForConditionalGeneration(config), Gemma4Processor(
        feature_extractor=Gemma4AudioFeatureExtractor(),
        image_processor=Gemma4ImageProcessor(patch_size=4, pooling_kernel_size=3, max_soft_tokens=70),
        tokenizer=tokenizer,
        video_processor=Gemma4VideoProcessor(patch_size=4, pooling_kernel_size=3, max_soft_tokens=70),
        image_seq_length=70,
        chat_template=CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<|image|>"),
    )
