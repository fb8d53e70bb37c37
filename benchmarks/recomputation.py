"""What gradient checkpointing costs by the number of layers that recompute, and what memory each of the others takes.

    python benchmarks/recomputation.py

Forward and backward of log-probs by the 24M model with adapters on its language model, for one prompt and its group.
``policy.gradient_checkpointing`` true is the row in which all layers recompute, false that in which none does, and
``auto`` is between them, by the memory that is free. The rows take turns in one process; the times are those of the
processor, which other jobs on the machine change least.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from grpo_step.questions import questions
from grpo_step.settings import StepSettings
from grpo_step.shapes import write_shape
from jsonargparse import auto_cli

from vr1.policy import Lora, PolicySource
from vr1.policy.recomputation import Recomputation
from vr1.prompts import PromptEncoder
from vr1.runs.tables import markdown_table


class _Fixed(Recomputation):
    """Lets a number of layers store their activations, whatever memory is free."""

    storing = 0

    def _fitting(self, room: float, tokens: int) -> int:
        return self.storing


def main(rounds: int = 7, group_size: int = 8, new_tokens: int = 128, json_file: Path | None = None) -> None:
    """Measure.

    Args:
        rounds: turns of each row, after one to warm up.
        group_size: completions of the prompt.
        new_tokens: tokens of each completion.
        json_file: also write the times there.
    """
    settings = StepSettings(group_size=group_size, new_tokens=new_tokens)
    with tempfile.TemporaryDirectory() as folder:
        write_shape(settings.shape, Path(folder), "cpu", settings.dtype)
        source = PolicySource(path=folder, lora=Lora(), freeze_vision=True, gradient_checkpointing="auto")
        policy, encoder = source.load(), PromptEncoder(source.processor(), source.family(), 32768)
    prompts = encoder([questions(settings, encoder, 1)[0]])
    prompts = policy.with_image_features(prompts)
    choice = policy.recomputation = _Fixed(policy.base.get_decoder().layers)
    tokens = torch.randint(100, 4000, (1, group_size, new_tokens), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    measured: dict[int, list[float]] = {}
    for turn in range(rounds + 1):
        for recomputed in range(choice.layers + 1):
            choice.storing = choice.layers - recomputed
            policy.zero_grad()
            started = time.process_time()
            policy.log_probs(prompts, tokens, mask)[0].mean().backward()
            if turn:
                measured.setdefault(recomputed, []).append(time.process_time() - started)
    assert choice.bytes_per_token is not None
    count = tokens.numel() + prompts.tokens.numel()
    layer = choice.bytes_per_token * count / 2**20
    least = statistics.median(measured[0])
    rows = []
    for recomputed, seconds in measured.items():
        median = statistics.median(seconds)
        stored = layer * (choice.layers - recomputed)
        rows.append([f"{recomputed} of {choice.layers}", f"{stored:.0f}", f"{median:.2f}", f"{median / least:.2f}"])
    head = ["layers that recompute", "activations of the others, MiB", "forward and backward, s", "ratio"]
    print(f"{count:,} tokens, {choice.bytes_per_token / 1024:.1f} KiB each in a layer\n\n{markdown_table(head, rows)}")
    if json_file is not None:
        json_file.write_text(json.dumps(measured))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
