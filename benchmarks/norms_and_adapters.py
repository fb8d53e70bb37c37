"""What vr1's RMS norms and LoRA adapters save in the training pass, against those of transformers and peft.

    python benchmarks/norms_and_adapters.py

Forward and backward of log-probs by the 24M model in float32 for one prompt and its group: processor time, with both
sides in turns in one process.
"""

import statistics
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import torch
from grpo_step.questions import questions
from grpo_step.settings import StepSettings
from grpo_step.shapes import write_shape
from jsonargparse import auto_cli
from torch import Tensor

from vr1.policy import Lora, Policy, PolicySource
from vr1.prompts import PromptBatch, PromptEncoder
from vr1.runs.tables import markdown_table


def load(source: PolicySource, patched: bool) -> Policy:
    """A policy with vr1's norms and adapters, or with those of transformers and peft."""
    if patched:
        return source.load()
    with patch("vr1.policy.patches.fuse_norm"), patch("vr1.policy.patches.fuse_adapters"):
        return source.load()


def train(policy: Policy, prompts: PromptBatch, tokens: Tensor) -> None:
    """Forward and backward."""
    policy.zero_grad()
    policy.log_probs(prompts, tokens, torch.ones_like(tokens, dtype=torch.bool))[0].mean().backward()


def main(rounds: int = 9, group_size: int = 8, new_tokens: int = 64) -> None:
    """Measure.

    Args:
        rounds: turns of each side, after one to warm up.
        group_size: completions of the prompt.
        new_tokens: tokens of each completion.
    """
    settings = StepSettings(group_size=group_size, new_tokens=new_tokens)
    tokens = torch.randint(100, 4000, (1, group_size, new_tokens), generator=torch.Generator().manual_seed(0))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_shape(settings.shape, Path(folder), "cpu", settings.dtype)
        for name, lora in {"all weights": None, "adapters": Lora()}.items():
            source = PolicySource(path=folder, lora=lora)
            encoder = PromptEncoder(source.processor(), source.family(), 32768)
            prompts = encoder([questions(settings, encoder, 1)[0]])
            sides = [load(source, patched) for patched in (False, True)]
            times: list[list[float]] = [[], []]
            for turn in range(rounds + 1):
                for policy, seconds in zip(sides, times, strict=True):
                    started = time.process_time()
                    train(policy, prompts, tokens)
                    if turn:
                        seconds.append(time.process_time() - started)
            theirs, ours = (statistics.median(seconds) for seconds in times)
            rows.append([name, f"{theirs:.2f}", f"{ours:.2f}", f"{ours / theirs:.2f}"])
    head = ["trained", "transformers and peft, s", "vr1, s", "ratio"]
    print(markdown_table(head, rows))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
