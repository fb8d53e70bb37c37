"""The sizes of the models that configurations name, so that they are planned without a network and without weights.

``models.json`` has the numbers of their ``config.json`` files that memory depends on. A folder is written from them
that loads as the model's own would, but for its tokenizer: it takes every word, digit and run of signs for one token,
as the models' tokenizers do with nearly all of a prompt. Image tokens, by far the most, are counted exactly.

Source: the config.json and preprocessor_config.json of Qwen/Qwen2.5-VL-3B-Instruct and Qwen/Qwen2.5-VL-7B-Instruct on
the Hugging Face hub, of google/gemma-2-9b, and the image size of Griffon-G, arXiv 2410.16163.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from vr1.griffon import GriffonGConfig, GriffonGProcessor
from vr1.griffon.processor import square_images
from vr1.policy.loading import PolicySource
from vr1.policy.tiny import CHAT_TEMPLATE, SPECIAL_TOKENS
from vr1.policy.tiny_griffon import SPECIAL_TOKENS as GEMMA_TOKENS

__all__ = ["KNOWN_MODELS", "known_model"]

KNOWN_MODELS: dict[str, dict[str, Any]] = json.loads(files(__package__).joinpath("models.json").read_text())
# In the tokenizer of Qwen2.5 they follow 151,643 others.
_FIRST_SPECIAL = 151643
# Areas in pixels that the released image processors of Qwen2.5-VL resize to: 4 to 16,384 image tokens of 28 x 28.
_AREAS = {"shortest_edge": 4 * 28 * 28, "longest_edge": 16384 * 28 * 28}
# The released template begins with a message of the system.
_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


@contextmanager
def known_model(source: PolicySource) -> Iterator[PolicySource]:
    """The same policy, of a folder with config and processor where the path names a model whose sizes are known.

    Args:
        source: the policy. A folder that exists is used as it is, and so is a path with another name.

    Example:
        >>> with known_model(PolicySource(path="Qwen/Qwen2.5-VL-7B-Instruct")) as source:
        ...     source.config().text_config.hidden_size
        3584
    """
    name = Path(source.path).name
    if name not in KNOWN_MODELS or Path(source.path).exists():
        yield source
        return
    with TemporaryDirectory() as folder:
        kind, config = KNOWN_MODELS[name]["kind"], KNOWN_MODELS[name]["config"]
        (_write_griffon if kind == "griffon_g" else _write_qwen)(Path(folder), config)
        yield replace(source, path=folder)


def _write_qwen(folder: Path, config: dict[str, Any]) -> None:
    ids = {token: _FIRST_SPECIAL + number for number, token in enumerate(_qwen_tokens())}
    text = config["text_config"]
    head = text["hidden_size"] // text["num_attention_heads"]
    rope = {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [head // 8, 3 * head // 16, 3 * head // 16],
    }
    Qwen2_5_VLConfig(
        **{**config, "text_config": {**text, "rope_parameters": rope, "max_position_embeddings": 128000}},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        architectures=["Qwen2_5_VLForConditionalGeneration"],
    ).save_pretrained(folder)
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=_AREAS),
        tokenizer=_tokenizer(ids, eos_token="<|im_end|>", pad_token="<|endoftext|>"),
        video_processor=Qwen2VLVideoProcessor(size=_AREAS),
        chat_template=_SYSTEM + CHAT_TEMPLATE,
    ).save_pretrained(folder)


def _qwen_tokens() -> Sequence[str]:
    """The special tokens of Qwen2.5, of which those of tiny models are a part, in their order."""
    boxes = ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>")
    return (*SPECIAL_TOKENS[:3], *boxes, "<|quad_end|>", *SPECIAL_TOKENS[3:])


def _write_griffon(folder: Path, settings: dict[str, Any]) -> None:
    config = GriffonGConfig(**settings)
    config.save_pretrained(folder)
    ids = {token: number for number, token in enumerate(GEMMA_TOKENS)}
    GriffonGProcessor(
        image_processor=square_images(config.vision_config.image_size, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
        tokenizer=_tokenizer(ids, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"),
        image_tokens=config.image_tokens,
    ).save_pretrained(folder)


def _tokenizer(special: dict[str, int], **roles: str) -> PreTrainedTokenizerFast:
    """A tokenizer that takes every word with the space before it, digit and run of signs for one token.

    Args:
        special: ids of special tokens.
        roles: names of the special tokens that begin and end a text, and of padding.
    """
    unknown = "<any>"
    tokenizer = Tokenizer(models.WordLevel({**special, unknown: max(special.values()) + 1}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unknown,
        additional_special_tokens=[token for token in special if token not in roles.values()],
        padding_side="left",
        **roles,
    )
