"""One GRPO step of vr1 and of TRL on the same weights, images and prompts, each in a process of its own."""

from grpo_step.settings import StepSettings

__all__ = ["StepSettings"]
