"""Models with random weights, made on the device in the sizes of the released ones, and prompts for them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from grpo_step.shapes import config_of
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from gpu_steps.run import Bench, SkippedError
from vr1.data.synthetic import SceneSource, SceneStyle
from vr1.families import Qwen25VL
from vr1.policy import Lora, Policy, PolicySource
from vr1.policy.loading import UNQUANTIZED
from vr1.prompts import PromptEncoder
from vr1.types import DetectionRecord

# Side of the images in pixels: 512 gives 324 image tokens, about what the QLoRA configs train with.
_SIDES = {"tiny": 112, "qwen2.5-vl-3b": 512, "qwen2.5-vl-7b": 512}
_GRPO_STEP_SHAPES = {"tiny": "24m"}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How the weights are held.

    Attributes:
        lora: adapters of rank 16 on the language model.
        nf4: base weights in 4 bits.
        dequantized: these are dequantized once a rollout.
        recompute: activations are recomputed in backward; ``auto``: as far as the memory requires.
    """

    lora: bool = False
    nf4: bool = False
    dequantized: bool = False
    recompute: bool | Literal["auto"] = False

    @property
    def name(self) -> str:
        """For tables."""
        weights = ("NF4 dequantized" if self.dequantized else "NF4") if self.nf4 else "bf16"
        return weights + (" + LoRA" if self.lora else "") + (", recompute auto" if self.recompute == "auto" else "")


def source_of(bench: Bench, variant: Variant) -> PolicySource:
    """Settings of the policy; the path is that of the embedded model, whose processor and tokenizer are used."""
    side = _SIDES[bench.shape]
    return PolicySource(
        dtype="bfloat16" if bench.dtype == torch.bfloat16 else "float32",
        lora=Lora() if variant.lora else None,
        quantize="nf4" if variant.nf4 else None,
        rollout_weights=("dequantized" if variant.dequantized else "quantized") if variant.nf4 else "auto",
        gradient_checkpointing=variant.recompute,
        min_pixels=side * side if bench.shape == "tiny" else None,
        max_pixels=side * side,
    )


def random_policy(bench: Bench, variant: Variant, shape: str | None = None) -> Policy:
    """A policy of random weights whose completions never end by themselves (its end token is the image token).

    Raises:
        SkippedError: 4 bits without bitsandbytes.
    """
    if variant.nf4 and not available("bitsandbytes"):
        raise SkippedError("bitsandbytes is not installed")
    source = source_of(bench, variant)
    shape = shape or bench.shape
    config = config_of(_GRPO_STEP_SHAPES.get(shape, shape), source.processor().tokenizer)
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(bench.dtype)
    try:
        with torch.device(bench.device):
            network = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(before)
    network.generation_config.eos_token_id = config.image_token_id
    network.generation_config.pad_token_id = config.text_config.pad_token_id
    if variant.nf4:
        _quantize(network, bench)
    return source.wrap(network).to(bench.device)


def available(package: str) -> bool:
    """Whether a package can be imported; one that is broken counts as missing."""
    try:
        __import__(package)
    except ImportError:
        return False
    return package in sys.modules


def _quantize(network: nn.Module, bench: Bench) -> None:
    """Hold the language model's linear layers in 4 bits, as transformers does for ``quantize: nf4``."""
    import bitsandbytes as bnb

    for name, layer in list(network.named_modules()):
        if not isinstance(layer, nn.Linear) or any(name == skip or name.startswith(f"{skip}.") for skip in UNQUANTIZED):
            continue
        new = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=bench.dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        new.weight = bnb.nn.Params4bit(
            layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=new
        ).to(bench.device)
        if layer.bias is not None:
            new.bias = nn.Parameter(layer.bias.data, requires_grad=False)
        parent = network.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], new)
        layer.weight = None  # type: ignore[assignment]
    network.requires_grad_(False)


def encoder(bench: Bench) -> PromptEncoder:
    """Prompts as the embedded model's tokenizer makes them; its special tokens are those of the random models."""
    return PromptEncoder(source_of(bench, Variant()).processor(), Qwen25VL(), max_prompt_tokens=32768)


def records(bench: Bench, count: int, categories: Sequence[str] = ()) -> list[DetectionRecord]:
    """Scenes as large as the model is shown images."""
    side = _SIDES[bench.shape]
    style = SceneStyle(canvas_sizes=((side, side),), object_size=(side / 8, side / 3), num_categories=(2, 2))
    source = SceneSource(length=count, style=style)
    return [source[index] for index in range(count)]
