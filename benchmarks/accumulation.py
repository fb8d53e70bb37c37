"""What gradient accumulation costs: a step of several batches, sampled together or each by itself.

    python benchmarks/accumulation.py

The demo's model, images and settings, without its learning rate, so that all sides sample the same tokens: one batch
of 16 prompts, and four batches of 4, sampled together and apart. Apart, the forward of the prompts serves the rollout
and the training; together, each batch reads its prompts again for the training. The sides take turns in one process;
the times are those of the processor, which other jobs on the machine change least.
"""

import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import auto_cli

from vr1.data import SceneDataModule, SceneStyle
from vr1.losses import GRPO
from vr1.modules.grpo import GRPOModule
from vr1.policy import PolicySource
from vr1.rollout import Sampling
from vr1.runs.tables import markdown_table
from vr1.strategies import shards_weights

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"


class _Apart(GRPOModule):
    """Samples each batch by itself, and reuses its prefix."""

    samples_whole_steps = False

    def reuses_prefix(self) -> bool:
        return self.policy.can_reuse_prefix(sharded=shards_weights(self.trainer.strategy))


class _Clock(pl.Callback):
    """Processor seconds of each optimizer step, and of its rollout."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._rollout = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._rollout = module.training_state.timer.seconds.get("rollout", 0.0)
            self._started, self._wall = time.process_time(), time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            wall = time.perf_counter() - self._wall
            # The rollout's share of the wall time, as processor time.
            share = (module.training_state.timer.seconds["rollout"] - self._rollout) / wall
            seconds = time.process_time() - self._started
            self.steps.append({"step": seconds, "rollout": share * seconds})


def sides(prompts: int, batches: int) -> dict[str, tuple[type[GRPOModule], int, int]]:
    """The module, batches of a step and prompts of a batch by the name of a side."""
    size = prompts // batches
    return {
        f"1 batch of {prompts}": (GRPOModule, 1, prompts),
        f"{batches} batches of {size}, together": (GRPOModule, batches, size),
        f"{batches} batches of {size}, apart": (_Apart, batches, size),
    }


def main(
    rounds: int = 5, prompts: int = 16, batches: int = 4, new_tokens: int = 160, json_file: Path | None = None
) -> None:
    """Measure.

    Args:
        rounds: turns of each side, each of one step after another to warm up.
        prompts: prompts of a step.
        batches: batches that a step is divided into.
        new_tokens: longest completion.
        json_file: also write the times there.
    """
    settings = yaml.safe_load(DEMO.read_text())["data"]["init_args"]
    style = SceneStyle(**{name: tuple(v) if isinstance(v, list) else v for name, v in settings["style"].items()})
    measured: dict[str, list[dict[str, float]]] = {}
    modules: dict[str, GRPOModule] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name, (kind, count, size) in sides(prompts, batches).items():
                if name not in modules:
                    modules[name] = kind(
                        policy=PolicySource(),
                        sampling=Sampling(group_size=8, max_new_tokens=new_tokens),
                        loss=GRPO(kl_coef=0.0),
                        optimizer=partial(torch.optim.AdamW, lr=0.0),
                        seed=0,
                    )
                clock = _Clock()
                trainer = pl.Trainer(
                    accelerator="cpu",
                    max_steps=2,
                    accumulate_grad_batches=count,
                    callbacks=[clock],
                    logger=False,
                    enable_checkpointing=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                    limit_val_batches=0,
                    default_root_dir=folder,
                )
                data = SceneDataModule(
                    style, train_scenes=4 * prompts, val_scenes=1, batch_size=size, num_workers=0, seed=0
                )
                trainer.fit(modules[name], data)
                measured.setdefault(name, []).append(clock.steps[-1])
    first = statistics.median(step["step"] for step in next(iter(measured.values())))
    rows = []
    for name, steps in measured.items():
        step, rollout = (statistics.median(one[part] for one in steps) for part in ("step", "rollout"))
        rows.append([name, f"{step:.2f}", f"{rollout:.2f}", f"{step / first:.2f}"])
    print(markdown_table(["side", "step, s", "its rollout, s", "step, ratio"], rows))
    if json_file is not None:
        json_file.write_text(json.dumps(measured))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
