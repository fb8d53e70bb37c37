"""The prediction of `vr1 plan` against the measured memory of a training, on a CPU, for small models.

    python benchmarks/memory_plan.py --out runs/memory_plan.json
    python benchmarks/memory_plan.py "24M, LoRA, G 8"

Each shape is trained for two steps in a process of its own, so that the second meets the optimizer states and gradients
of the first. What is measured are the bytes that torch's allocator has given to tensors, at their peak, and the weights
that the allocator does not know, since they are mapped from their file or loaded by other threads. That is exact, and
the same in every run. C is switched off, since the plan is about GPUs: decoding by it has a copy of the weights, and
its attention stores less. What the plan adds for AdamW on a GPU, which updates all tensors at once there, is left out.
Completions never end before their limit, and images are shown at the largest size: what the plan is about. With
"unequal prompts" their lengths differ by several tokens; without, they differ as those of three names do.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from tensor_memory import allocations, elsewhere

_MIB = 2**20
_SIZES = {
    "24M": {
        "hidden": 384,
        "layers": 8,
        "heads": 8,
        "kv_heads": 4,
        "intermediate": 1152,
        "vision_hidden": 256,
        "vision_layers": 6,
        "vision_heads": 8,
        "vision_intermediate": 768,
    }
}
# Model, settings of the policy and how many batches a step has, prompts, completions of each, tokens of each.
CASES: dict[str, tuple[str, dict[str, Any], int, int, int]] = {
    "embedded, all weights, G 8": ("embedded", {}, 4, 8, 64),
    "embedded, all weights, recomputed, G 8": ("embedded", {"gradient_checkpointing": True}, 4, 8, 64),
    "embedded, LoRA, G 16": ("embedded", {"lora": 16}, 4, 16, 64),
    "24M, all weights, G 4": ("24M", {}, 4, 4, 64),
    "24M, all weights, G 8": ("24M", {}, 4, 8, 64),
    "24M, all weights, recomputed, G 8": ("24M", {"gradient_checkpointing": True}, 4, 8, 64),
    "24M, LoRA, G 8": ("24M", {"lora": 16}, 4, 8, 64),
    "24M, LoRA, recomputed, G 8": ("24M", {"lora": 16, "gradient_checkpointing": True}, 4, 8, 64),
    "24M, 4 bits, recomputed, G 8": ("24M", {"lora": 16, "quantize": "nf4", "gradient_checkpointing": True}, 4, 8, 64),
    "24M, LoRA, unequal prompts, G 8": ("24M", {"lora": 16}, 4, 8, 64),
    "24M, all weights, recomputed, unequal prompts, G 8": ("24M", {"gradient_checkpointing": True}, 4, 8, 64),
    "24M, all but the vision tower, recomputed, G 8": (
        "24M",
        {"freeze_vision": True, "gradient_checkpointing": True},
        4,
        8,
        64,
    ),
    "24M, all weights, bf16-mixed, G 8": ("24M", {}, 4, 8, 64),
    "24M in bfloat16, LoRA, bf16-mixed, G 8": ("24M", {"lora": 16, "dtype": "bfloat16"}, 4, 8, 64),
    "24M, LoRA, recomputed, four batches a step, G 8": (
        "24M",
        {"lora": 16, "gradient_checkpointing": True, "accumulate": 4},
        4,
        8,
        64,
    ),
}


def compare(out: Path = Path("runs/memory_plan.json"), only: str = "") -> None:
    """Measure and predict.

    Args:
        out: where the figures are written.
        only: a part of the names of the cases to run; empty for all.
    """
    rows = []
    print("| shape | predicted MiB | measured MiB | predicted / measured |\n|---|---|---|---|")
    for name in (name for name in CASES if only in name):
        ran = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=False)
        if ran.returncode:
            raise SystemExit(f"{name}: {ran.stderr}")
        row = json.loads(ran.stdout.splitlines()[-1])
        rows.append({"shape": name, **row})
        predicted, measured = row["predicted"], row["measured"]
        print(f"| {name} | {predicted:.0f} | {measured:.0f} | {predicted / measured:.2f} |", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=2) + "\n")


def measure(name: str) -> dict[str, float]:
    """Train one case and predict it; MiB of each."""
    import torch

    from vr1.commands.plan.predict import predict
    from vr1.rollout import linear

    os.environ["CC"] = "off"
    # Attention on a CPU allocates a buffer for each thread.
    torch.set_num_threads(1)
    linear._MAX_REORDERED_ROWS = 0
    with tempfile.TemporaryDirectory() as folder:
        needs = _needs(name, Path(folder))
        fewest = 2 if "unequal" in name else needs.categories
        peak, allocated, policy = allocations(lambda: _train(needs, Path(folder), fewest))
        weights = elsewhere([*policy.parameters(), *policy.buffers()], allocated)
        prediction = predict(needs)
    # A CPU's AdamW updates one tensor after the other.
    prediction.moments["update"].pop("activations")
    parts = {part: size / _MIB for part, size in prediction.moments[prediction.worst].items()}
    return {"predicted": prediction.peak / _MIB, "measured": (peak + weights) / _MIB, **parts}


def _needs(name: str, folder: Path) -> Any:
    import torch

    from vr1.commands.plan.needs import Needs
    from vr1.policy import Lora, PolicySource
    from vr1.policy.tiny import Sizes, write_model

    model, settings, prompts, group, tokens = CASES[name]
    source = PolicySource(min_pixels=112 * 112, max_pixels=112 * 112)
    if model in _SIZES:
        write_model(folder / "model", Sizes(**_SIZES[model]))
        source = replace(source, path=str(folder / "model"))
    own = {name: value for name, value in settings.items() if name != "accumulate"}
    if rank := settings.get("lora"):
        own["lora"] = Lora(rank=rank)
    return Needs(
        policy=replace(source, **own),
        prompts=prompts,
        group_size=group,
        completion_tokens=tokens,
        max_prompt_tokens=512,
        reference=True,
        optimizer=partial(torch.optim.AdamW, lr=1e-5),
        categories=3,
        precision="bf16-mixed" if "bf16-mixed" in name else "32-true",
        accumulate=settings.get("accumulate", 1),
    )


def _train(needs: Any, folder: Path, fewest_categories: int) -> Any:
    import lightning.pytorch as pl

    from vr1.data import SceneDataModule, SceneStyle
    from vr1.modules.grpo import GRPOModule
    from vr1.rollout import Sampling

    class Endless(GRPOModule):
        """Completions that always reach the limit: their end token is one that is never sampled."""

        def configure_model(self) -> None:
            super().configure_model()
            self.policy.base.generation_config.eos_token_id = self.policy.forbidden_tokens[:1]

    module = Endless(
        policy=needs.policy,
        sampling=Sampling(group_size=needs.group_size, max_new_tokens=needs.completion_tokens),
        optimizer=needs.optimizer,
    )
    style = SceneStyle(num_categories=(fewest_categories, needs.categories))
    scenes = 2 * needs.prompts * needs.accumulate
    data = SceneDataModule(style, train_scenes=scenes, val_scenes=1, batch_size=needs.prompts, num_workers=0)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        accelerator="cpu",
        precision=needs.precision,
        max_steps=2,
        accumulate_grad_batches=needs.accumulate,
        limit_val_batches=0,
        enable_model_summary=False,
        default_root_dir=folder,
        **quiet,
    )
    trainer.fit(module, data)
    return module.policy


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1] in CASES:
        print(json.dumps(measure(sys.argv[1])))
    else:
        auto_cli(compare, as_positional=False)
