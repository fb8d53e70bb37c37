"""A tiny untrained Griffon-G with its tokenizer and processor.

    python -m vr1.policy.tiny_griffon --out runs/tiny_griffon

writes a folder that loads as any other model. `vr1.policy.tiny` does the same for Qwen2.5-VL and says more about the
choices that both make.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex
from transformers import PreTrainedTokenizerFast
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from vr1.data.synthetic import SHAPES
from vr1.families import Griffon
from vr1.griffon import GriffonGConfig, GriffonGForConditionalGeneration, GriffonGProcessor
from vr1.griffon.config import END_OF_TURN_ID
from vr1.griffon.processor import square_images
from vr1.policy.tiny import byte_level_bpe
from vr1.types import as_boxes

# As Gemma 2's tokenizer begins.
SPECIAL_TOKENS = (
    *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<2mass>", "[@BOS@]"),
    *(f"<unused{number}>" for number in range(99)),
    *("<start_of_turn>", "<end_of_turn>"),
)


@dataclass(frozen=True, kw_only=True)
class GriffonSizes:
    """Sizes of a tiny Griffon-G.

    Args:
        hidden: width of the language model.
        layers: its layers; every other sees a window only, the first among them.
        heads: its attention heads.
        kv_heads: its key and value heads, a divisor of ``heads``.
        intermediate: width of its MLPs.
        window: tokens that a layer with a window sees.
        vision_hidden: width of the vision tower.
        vision_layers: layers of the vision tower, of which the last is not used.
        vision_heads: its attention heads.
        vision_intermediate: width of its MLPs.
        image: side of the square that images are resized to, in pixels.
        patch: side of a patch in pixels.
        projector: ``conv_reduce`` or ``conv_reduce_wo_pad``.
    """

    hidden: int = 192
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    intermediate: int = 512
    window: int = 4096
    vision_hidden: int = 160
    vision_layers: int = 5
    vision_heads: int = 5
    vision_intermediate: int = 432
    image: int = 112
    patch: int = 8
    projector: str = "conv_reduce"


def _pieces() -> Regex:
    """A pattern of the pieces of a text: the fixed phrases of questions and answers, words, three digits."""
    family = Griffon()
    phrases = [part for names in (("#",), ("#", "#")) for part in family.instruction(names).split("#")]
    fixed = [re.escape(phrase) for phrase in sorted(set(phrases), key=len, reverse=True) if len(phrase) > 2]
    answer = [r"-\[[01]\.", r",[01]\.", r"\]&", r"[0-9]{1,3}", "[A-Za-z]+", "."]
    return Regex("|".join([*fixed, *answer]))


def _corpus() -> Iterator[str]:
    family = Griffon()
    for number in range(1000):
        yield from [f"{number:03d}"] * 3
    for trio in itertools.permutations(SHAPES, 3):
        yield family.instruction(trio[:1])
        yield family.instruction(trio)
        yield family.write(as_boxes([[0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]), trio)
    yield from [family.write(as_boxes([]), [])] * 4
    yield from ["user\n", "model\n", "\n"] * 4


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Gemma 2's special tokens, in which three decimals are one token.

    Example:
        >>> build_tokenizer().tokenize("circle-[0.001,0.345,")
        ['circle', '-[0.', '001', ',0.', '345', ',']
    """
    tokenizer = byte_level_bpe(_pieces(), _corpus(), SPECIAL_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
        padding_side="left",
        model_max_length=4096,
    )


def build_config(tokenizer: PreTrainedTokenizerFast, sizes: GriffonSizes) -> GriffonGConfig:
    """The config of a model of these sizes."""
    return GriffonGConfig(
        text_config={
            "model_type": "gemma2",
            "vocab_size": len(tokenizer),
            "hidden_size": sizes.hidden,
            "intermediate_size": sizes.intermediate,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads,
            "head_dim": sizes.hidden // sizes.heads,
            "query_pre_attn_scalar": sizes.hidden // sizes.heads,
            "sliding_window": sizes.window,
            "max_position_embeddings": 4096,
        },
        vision_config={
            "hidden_size": sizes.vision_hidden,
            "intermediate_size": sizes.vision_intermediate,
            "num_hidden_layers": sizes.vision_layers,
            "num_attention_heads": sizes.vision_heads,
            "image_size": sizes.image,
            "patch_size": sizes.patch,
        },
        projector_type=sizes.projector,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, sizes: GriffonSizes, seed: int = 0
) -> GriffonGForConditionalGeneration:
    """A randomly initialized Griffon-G.

    Args:
        tokenizer: as `build_tokenizer` returns it.
        sizes: sizes of the model.
        seed: seed of the initial weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GriffonGForConditionalGeneration(build_config(tokenizer, sizes))
        _initialize(model, tokenizer, sizes)
    model.generation_config.eos_token_id = [END_OF_TURN_ID, model.config.text_config.eos_token_id]
    model.generation_config.pad_token_id = model.config.text_config.pad_token_id
    return model


@torch.no_grad()
def _initialize(
    model: GriffonGForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, sizes: GriffonSizes
) -> None:
    """Initial weights of a narrow model, as `vr1.policy.tiny` chooses them: close numbers start close together."""
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            std = weight[0].numel() ** -0.5
            if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "fc2.weight")):
                std *= (2 * sizes.layers) ** -0.5
            weight.normal_(0.0, std)
    embedding = model.get_parameter("model.language_model.embed_tokens.weight")
    ids: dict[str, int] = tokenizer.get_vocab()
    rows = torch.tensor([ids[f"{number:03d}"] for number in range(1000)])
    wavelengths = 10.0 * 200.0 ** torch.linspace(0.0, 1.0, sizes.hidden // 2)
    angles = 2 * torch.pi * torch.arange(1000.0)[:, None] / wavelengths
    waves = torch.cat([angles.cos(), angles.sin()], dim=1) * (2 / sizes.hidden) ** 0.5
    embedding[rows] = 0.9 * waves + 0.4 * embedding[rows]


def build_processor(tokenizer: PreTrainedTokenizerFast, sizes: GriffonSizes) -> GriffonGProcessor:
    """The processor of a model of these sizes."""
    return GriffonGProcessor(
        image_processor=square_images(sizes.image, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
        tokenizer=tokenizer,
        image_tokens=build_config(tokenizer, sizes).image_tokens,
    )


def write_model(out: Path, sizes: GriffonSizes = GriffonSizes(), seed: int = 0) -> None:
    """Write a tiny untrained Griffon-G to a folder.

    Args:
        out: folder to write; loads with ``from_pretrained``.
        sizes: sizes of the model.
        seed: seed of the initial weights.
    """
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, sizes, seed)
    model.save_pretrained(out)
    build_processor(tokenizer, sizes).save_pretrained(out)
    print(f"{out}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(write_model, as_positional=False)
