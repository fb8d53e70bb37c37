"""The settings of one GRPO step: model, prompt, group and device."""

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """Settings that both sides share.

    Args:
        shape: sizes of the model, whose weights are random (``embedded``: the model that comes with vr1).
        image: width and height of the images in pixels.
        prompt_tokens: tokens of a prompt, image tokens included, at least; categories are added until it is reached.
            0 takes two categories.
        prompts: prompts of an optimizer step.
        group_size: completions of each prompt.
        new_tokens: tokens of each completion, all of them exactly as long.
        kl_coef: weight of the KL term; 0 leaves the reference out.
        device: ``cpu`` or ``cuda``; float32 on the first, bfloat16 on the second.
        lora: train adapters of rank 16 on the language model.
        quantize: store the base weights in 4 bits; requires ``lora``.
        checkpointing: recompute activations in backward.
    """

    shape: Literal["24m", "embedded", "qwen2.5-vl-3b", "qwen2.5-vl-7b"] = "24m"
    image: tuple[int, int] = (448, 448)
    prompt_tokens: int = 285
    prompts: int = 1
    group_size: int = 8
    new_tokens: int = 64
    kl_coef: float = 0.2
    device: Literal["cpu", "cuda"] = "cpu"
    lora: bool = False
    quantize: Literal["nf4"] | None = None
    checkpointing: bool = False

    @property
    def dtype(self) -> Literal["float32", "bfloat16"]:
        """Precision of weights and computation."""
        return "float32" if self.device == "cpu" else "bfloat16"

    @property
    def tokens(self) -> int:
        """Completion tokens of a step."""
        return self.prompts * self.group_size * self.new_tokens

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()
