"""Qwen2.5-VL models of several sizes with random weights, written to a folder that loads as a released model does."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from vr1.policy.loading import EMBEDDED_MODEL
from vr1.policy.tiny import SPECIAL_TOKENS, build_processor, build_tokenizer

# The released models by their config.json. The small one has their proportions: a fifth of the weights is the vision
# tower, the LM head has a tenth of the language model's work, three of four vision layers use windows.
TEXT_SHAPES: dict[str, dict[str, Any]] = {
    "24m": {
        "vocab_size": 4096,
        "hidden_size": 384,
        "intermediate_size": 1920,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    },
    "qwen2.5-vl-3b": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    },
    "qwen2.5-vl-7b": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
}
_RELEASED_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_VISION: dict[str, dict[str, Any]] = {
    "24m": {
        "depth": 8,
        "hidden_size": 240,
        "intermediate_size": 640,
        "num_heads": 3,
        "fullatt_block_indexes": [3, 7],
    },
    "qwen2.5-vl-3b": _RELEASED_VISION,
    "qwen2.5-vl-7b": _RELEASED_VISION,
}


def write_shape(shape: str, folder: Path, device: str, dtype: str) -> None:
    """Write a model whose completions always reach the token limit.

    Their end token is the image token, which neither side ever samples: vr1 forbids it, TRL suppresses it.
    """
    torch.manual_seed(0)
    model, processor = _embedded() if shape == "embedded" else _random(shape, device, dtype)
    image_token = model.config.image_token_id
    model.generation_config.eos_token_id = image_token
    processor.tokenizer.eos_token = processor.tokenizer.convert_ids_to_tokens(image_token)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _embedded() -> tuple[Any, Any]:
    return AutoModelForImageTextToText.from_pretrained(EMBEDDED_MODEL), AutoProcessor.from_pretrained(EMBEDDED_MODEL)


def config_of(shape: str, tokenizer: Any) -> Qwen2_5_VLConfig:
    """The configuration of a shape, with a tokenizer's special tokens."""
    ids: dict[str, int] = {token: tokenizer.vocab[token] for token in SPECIAL_TOKENS}
    text = TEXT_SHAPES[shape]
    head = text["hidden_size"] // text["num_attention_heads"]
    return Qwen2_5_VLConfig(
        text_config={
            **text,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [head // 8, 3 * head // 16, 3 * head // 16],
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={**_VISION[shape], "out_hidden_size": text["hidden_size"]},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=shape != "qwen2.5-vl-7b",
        architectures=["Qwen2_5_VLForConditionalGeneration"],
    )


def _random(shape: str, device: str, dtype: str) -> tuple[Any, Any]:
    tokenizer = build_tokenizer()
    config = config_of(shape, tokenizer)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    return model, build_processor(tokenizer, max_pixels=16384 * 28 * 28)
