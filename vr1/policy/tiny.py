"""A tiny untrained Qwen2.5-VL with its tokenizer, chat template and image processor.

    python -m vr1.policy.tiny --out runs/tiny

writes a folder that loads with ``from_pretrained`` like any released Qwen2.5-VL. The embedded model was trained from
it, and tests and benchmarks build their models with it. All classes are transformers' own; only the sizes are chosen
here.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from vr1.data.synthetic import SHAPES
from vr1.errors import UserError
from vr1.families import Qwen25VL
from vr1.types import as_boxes

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _pieces() -> Regex:
    """A pattern of the pieces of a text; no token crosses from one piece into the next.

    The family's fixed phrases and the fixed parts of its answers are pieces, which makes prompts and answers half as
    long. Words are pieces without their spaces, so that a label has the same tokens in question and answer and can be
    copied. Numbers of up to three digits are pieces.
    """
    family = Qwen25VL()
    phrases = [part for names in (("#",), ("#", "#")) for part in family.instruction(names).split("#")]
    fixed = [re.escape(phrase) for phrase in sorted(set(phrases), key=len, reverse=True) if len(phrase) > 2]
    answer = [r"```json\n\[\n?", r'\t\{"bbox_2d": \[', r'\], "label": "', r'"\}\n\]\n```', r'"\},\n']
    return Regex("|".join([*fixed, *answer, r"[A-Za-z]+", r"[0-9]{1,3}", r"[^A-Za-z0-9\t\]]+", "."]))


def byte_level_bpe(pieces: Regex, corpus: Iterable[str], special_tokens: Sequence[str]) -> Tokenizer:
    """A byte-level BPE tokenizer of 4,096 tokens.

    Args:
        pieces: the pattern of what is never merged with its surroundings.
        corpus: texts that the merges are learned from.
        special_tokens: the first tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pieces, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=2,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def build_tokenizer(max_number: int = 399) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which each integer from 0 to ``max_number`` is one token.

    Example:
        >>> build_tokenizer().tokenize('[112, 5]')
        ['[', '112', ',Ġ', '5', ']']
    """
    tokenizer = byte_level_bpe(_pieces(), _corpus(max_number), SPECIAL_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        padding_side="left",
        model_max_length=4096,
    )


def _corpus(max_number: int) -> Iterator[str]:
    """Texts that the tokenizer is trained on: numbers, and the family's questions and answers."""
    family = Qwen25VL()
    for number in range(max_number + 1):
        yield from [str(number)] * 3
    for trio in itertools.permutations(SHAPES, 3):
        yield family.instruction(trio[:1])
        yield family.instruction(trio)
        yield family.write(as_boxes([[10, 20, 30, 40], [1, 2, 3, 4], [5, 6, 7, 8]]), trio)
    yield from [family.write(as_boxes([]), [])] * 4
    yield from ["<|im_start|>user\n", "<|im_start|>assistant\n"] * 4


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a tiny Qwen2.5-VL.

    Args:
        hidden: width of the language model.
        layers: layers of the language model.
        heads: attention heads; the head size must be a multiple of 16.
        kv_heads: key and value heads, a divisor of ``heads``.
        intermediate: width of the language model's MLPs.
        vision_hidden: width of the vision tower.
        vision_layers: layers of the vision tower.
        vision_heads: attention heads of the vision tower.
        vision_intermediate: width of the vision tower's MLPs.
        rope_theta: base of the rotary positions of the language model. Columns use the slowest rotary pairs, whose
            angles would hardly change over the few columns of a small image at the usual base of a million.
        vision_rope_theta: base of the rotary positions of the vision tower, small for the same reason.

    Raises:
        UserError: the head size cannot be split into the three parts of Qwen's rotary positions.
    """

    hidden: int = 192
    layers: int = 5
    heads: int = 6
    kv_heads: int = 2
    intermediate: int = 512
    vision_hidden: int = 160
    vision_layers: int = 4
    vision_heads: int = 5
    vision_intermediate: int = 432
    rope_theta: float = 3.0
    vision_rope_theta: float = 10.0

    def __post_init__(self) -> None:
        if self.hidden % self.heads or self.head % 16:
            raise UserError(
                f"hidden={self.hidden} and heads={self.heads}: the head size must be a multiple of 16; try hidden=192,"
                " heads=6"
            )

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads


def build_model(tokenizer: PreTrainedTokenizerFast, sizes: Sizes, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """Build a randomly initialized Qwen2.5-VL.

    Args:
        tokenizer: as `build_tokenizer` returns it.
        sizes: sizes of the model.
        seed: seed of the initial weights.
    """
    ids: dict[str, int] = {token: tokenizer.vocab[token] for token in SPECIAL_TOKENS}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": sizes.hidden,
            "intermediate_size": sizes.intermediate,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads,
            "max_position_embeddings": 4096,
            # A quarter of the rotary pairs for time, the rest for rows and columns, as in the released models.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": sizes.rope_theta,
                "mrope_section": [sizes.head // 8, 3 * sizes.head // 16, 3 * sizes.head // 16],
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": sizes.vision_layers,
            "hidden_size": sizes.vision_hidden,
            "intermediate_size": sizes.vision_intermediate,
            "num_heads": sizes.vision_heads,
            "out_hidden_size": sizes.hidden,
            "rope_parameters": {"rope_type": "axial", "rope_theta": sizes.vision_rope_theta},
            "fullatt_block_indexes": list(range(sizes.vision_layers)),
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
        _initialize(model, tokenizer, sizes)
    model.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    return model


@torch.no_grad()
def _initialize(model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, sizes: Sizes) -> None:
    """Set the initial weights of a narrow model; the usual standard deviation of 0.02 suits thousands of units.

    Every matrix preserves the variance of its input. Matrices that add to the residual stream start smaller, by the
    number of such additions. Embeddings of numbers start on sinusoids of many wavelengths, so that close numbers are
    close; otherwise each coordinate would have to be learned as an unrelated word.
    """
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        std = weight[0].numel() ** -0.5
        if name.endswith(("o_proj.weight", "attn.proj.weight", "down_proj.weight")):
            std *= (2 * sizes.layers) ** -0.5
        weight.normal_(0.0, std)
    embedding = model.get_parameter("model.language_model.embed_tokens.weight")
    numbers = {int(token): row for token, row in tokenizer.vocab.items() if token.isascii() and token.isdigit()}
    wavelengths = 4.0 * 200.0 ** torch.linspace(0.0, 1.0, sizes.hidden // 2)
    angles = 2 * torch.pi * torch.tensor(sorted(numbers)).float()[:, None] / wavelengths
    waves = torch.cat([angles.cos(), angles.sin()], dim=1) * (2 / sizes.hidden) ** 0.5
    rows = torch.tensor([numbers[number] for number in sorted(numbers)])
    embedding[rows] = 0.9 * waves + 0.4 * embedding[rows]


def build_processor(
    tokenizer: PreTrainedTokenizerFast, min_pixels: int = 56 * 56, max_pixels: int = 112 * 112
) -> Qwen2_5_VLProcessor:
    """Build Qwen2.5-VL's processor, which resizes images to an area from ``min_pixels`` to ``max_pixels``."""
    size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=CHAT_TEMPLATE,
    )


def write_model(out: Path, sizes: Sizes = Sizes(), max_pixels: int = 112 * 112, seed: int = 0) -> None:
    """Write a tiny untrained Qwen2.5-VL to a folder.

    Args:
        out: folder to write; loads with ``from_pretrained``.
        sizes: sizes of the model.
        max_pixels: largest model input in pixels; larger images are resized, as by the released models.
        seed: seed of the initial weights.
    """
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, sizes, seed)
    model.save_pretrained(out)
    build_processor(tokenizer, max_pixels=max_pixels).save_pretrained(out)
    print(f"{out}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(write_model, as_positional=False)
