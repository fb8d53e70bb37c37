"""What the tiny models of the tests have in common: sizes, and a tokenizer with the special tokens of a kind."""

from transformers import PreTrainedTokenizerFast

from vr1.families import family_of
from vr1.policy.tiny import build_tokenizer

HIDDEN = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGE_TOKENS = {
    "internvl": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    "paligemma": {"image_token": "<image>"},
    "llava": {"image_token": "<image>"},
    "gemma3": {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    },
    "gemma4": {
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "image_token": "<|image|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
        "audio_token": "<|audio|>",
    },
    "glm4v": {
        "image_token": "<|image|>",
        "video_token": "<|video|>",
        "begin_image_token": "<|begin_of_image|>",
        "end_image_token": "<|end_of_image|>",
        "begin_video_token": "<|begin_of_video|>",
        "end_video_token": "<|end_of_video|>",
    },
}


def tokenizer_for(kind: str) -> PreTrainedTokenizerFast:
    """The blank model's tokenizer with the special tokens of another kind."""
    tokenizer = build_tokenizer(max_number=99)
    own = IMAGE_TOKENS.get(kind, {})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=own,
        padding_side="left",
    )
    if kind != "llava":
        tokenizer.add_tokens(list(family_of(kind).markers), special_tokens=True)
    return tokenizer


def text_settings(tokenizer: PreTrainedTokenizerFast) -> dict:
    ids = tokenizer.convert_tokens_to_ids
    return {
        **HIDDEN,
        "num_key_value_heads": 2,
        "head_dim": 16,
        # Some processors add tokens of their own afterwards.
        "vocab_size": len(tokenizer) + 1200,
        "bos_token_id": ids("<|im_start|>"),
        "eos_token_id": ids("<|im_end|>"),
        "pad_token_id": ids("<|endoftext|>"),
    }


def qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict:
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    return {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in names.items()}


SIZE = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
