"""The model without its weights, and the largest batch that a configuration allows, of empty images."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText

from vr1.commands.plan.live_bytes import FourBitLinear
from vr1.commands.plan.needs import Needs
from vr1.errors import UserError
from vr1.policy.loading import UNQUANTIZED
from vr1.policy.policy import Policy
from vr1.prompts import PromptBatch, PromptEncoder
from vr1.types import DetectionRecord, as_boxes

# How often the image is made smaller until its prompt fits.
_MAX_TRIES = 12


def largest_prompts(needs: Needs, count: int) -> PromptBatch:
    """Prompts with the largest images that the settings allow; their floating-point tensors have no content.

    Of several prompts the last is shorter than the others by a token or two: prompts of unequal lengths need a mask,
    which takes memory, and hardly a batch of real ones has equal lengths.

    Args:
        needs: the settings.
        count: number of prompts.

    Raises:
        UserError: ``max_prompt_tokens`` is too small for an image and the categories.
    """
    processor = needs.policy.processor()
    encoder = PromptEncoder(processor, needs.policy.family(), max_prompt_tokens=2**31)
    side = math.isqrt(needs.policy.max_pixels or _own_limit(processor))
    for _ in range(_MAX_TRIES):
        batch = encoder([_record(side, needs.categories)])
        tokens = batch.tokens.shape[1]
        if tokens <= needs.max_prompt_tokens:
            longest, shorter = _record(side, needs.categories), _record(side, needs.categories, shorter=True)
            return _without_content(encoder([longest] * (count - 1) + [shorter if count > 1 else longest]))
        side = int(side * math.sqrt(needs.max_prompt_tokens / tokens) * 0.97)
    raise UserError(
        f"max_prompt_tokens={needs.max_prompt_tokens} is too small for an image and {needs.categories} categories;"
        " raise it"
    )


def _own_limit(processor: Any) -> int:
    size = dict(processor.image_processor.size)
    return size.get("longest_edge") or size["height"] * size["width"]


def _record(side: int, categories: int, shorter: bool = False) -> DetectionRecord:
    names = [f"category {number}" for number in range(categories)]
    if shorter:
        names[-1] = "category"
    return DetectionRecord(
        image=Image.new("RGB", (side, side)),
        boxes_xyxy=as_boxes([]),
        labels=(),
        categories=tuple(names),
        image_id=0,
        origin="an empty image",
        areas=np.zeros(0),
        crowd=np.zeros(0, dtype=bool),
    )


def _without_content(prompts: PromptBatch) -> PromptBatch:
    vision = {name: value.to("meta") if value.is_floating_point() else value for name, value in prompts.vision.items()}
    return replace(prompts, vision=vision)


def empty_policy(needs: Needs) -> Policy:
    """The policy with parameters without content, in the precision that they are stored in.

    With ``gradient_checkpointing: auto`` all layers recompute their activations, which they do where memory is short.

    Args:
        needs: the settings.
    """
    source, dtype = needs.policy, getattr(torch, needs.policy.dtype)
    config = source.config()
    with torch.device("meta"):
        network: Any = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa", dtype=dtype)
        if source.quantize:
            network.requires_grad_(False)
            for layer in _layers_to_quantize(network):
                layer.__class__ = FourBitLinear
        policy = source.wrap(network)
    policy.recomputation = None
    return policy


def _layers_to_quantize(network: nn.Module) -> list[nn.Linear]:
    """The linear layers whose weights ``quantize`` stores in 4 bits."""
    return [
        part
        for name, part in network.named_modules()
        if isinstance(part, nn.Linear) and not any(name == skip or name.startswith(f"{skip}.") for skip in UNQUANTIZED)
    ]
