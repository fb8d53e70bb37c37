"""Trainings to compare: the same on one process and on two, started as torchrun starts them."""

import json
import os
import socket
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from callbacks import Export, WeightAverage
from tests import processes
from tests.checkpoints.test_resume import RewardedByHash
from tests.save_at import SaveAt
from vr1.data import SceneDataModule, SceneStyle
from vr1.losses import TokenMean
from vr1.modules.sft import SFTModule
from vr1.modules.supervised_term import SupervisedTerm
from vr1.policy import Lora
from vr1.rollout import Sampling
from vr1.strategies import FullySharded
from vr1.types import Rollout

# Prompts of a step, whatever the number of processes.
PROMPTS = 4
# Of the trainings with completions of very different lengths.
FAR_STEPS = 8


class FarApart(RewardedByHash):
    """The first half of a step's prompts is answered by one token each, the second by 30."""

    limits = (1, 30)

    def sample(self, batch, attempt=0, prefix=None):
        halves = [(self.limits[self.global_rank], batch)]
        if self.trainer.world_size == 1:
            half = len(batch) // 2
            halves = zip(
                self.limits, (self.encoder(batch.records[:half]), self.encoder(batch.records[half:])), strict=True
            )
        parts = []
        for limit, prompts in halves:
            self.sampling = replace(self.sampling, max_new_tokens=limit)
            parts.append(super().sample(prompts, attempt))
            assert parts[-1].tokens.shape[-1] == limit
        return join(parts)


def join(parts):
    longest = max(part.tokens.shape[-1] for part in parts)

    def widened(values):
        return torch.nn.functional.pad(values, (0, longest - values.shape[-1]))

    return Rollout(
        tokens=torch.cat([widened(part.tokens) for part in parts]),
        mask=torch.cat([widened(part.mask) for part in parts]),
        finished=torch.cat([part.finished for part in parts]),
        log_probs=torch.cat([widened(part.log_probs) for part in parts]),
        texts=[group for part in parts for group in part.texts],
        seconds=parts[0].seconds,
    )


def module(source, kind=RewardedByHash, optimizer=None, **settings):
    return kind(
        policy=source,
        sampling=Sampling(group_size=2, max_new_tokens=5),
        evaluation=Sampling(group_size=1, temperature=0.0, max_new_tokens=8),
        seed=2,
        optimizer=optimizer or partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        lr_scheduler=partial(torch.optim.lr_scheduler.LinearLR, total_iters=5),
        **settings,
    )


def with_answers(source):
    """Several updates from each rollout, with a supervised term."""
    return module(source, updates_per_rollout=2, supervised=SupervisedTerm(weight=0.5))


def supervised(source):
    return SFTModule(policy=source, optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9))


class Rows(Callback):
    """What every step came to, and the weights at the end as one file."""

    def __init__(self, folder):
        self.folder, self.rows = Path(folder), []

    def on_train_batch_end(self, trainer, *_):
        names = ("grpo/loss", "grpo/kl", "grpo/entropy", "reward/total", "grpo/completion_tokens", "grpo/grad_norm")
        names += ("grpo/supervised_loss", "sft/loss", "sft/entropy")
        self.rows.append(
            {name: float(trainer.callback_metrics[name]) for name in names if name in trainer.callback_metrics}
        )

    def on_train_end(self, trainer, module):
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "rows.json").write_text(json.dumps(self.rows))
        trainer.save_checkpoint(self.folder / "end.ckpt")


def train(made, folder, steps, save=None, ckpt_path=None, world=1, average=None, export=None, **settings):
    pl.seed_everything(1)
    trainer = pl.Trainer(
        **{
            "accelerator": "cpu",
            "devices": world,
            "max_steps": steps,
            "max_epochs": -1,
            "limit_val_batches": 0,
            "logger": False,
            "enable_checkpointing": bool(save),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            "gradient_clip_val": 1.0,
            "callbacks": [
                Rows(folder),
                *([Export(dirname=folder / "model", dtype=export)] if export else []),
                *([WeightAverage(average)] if average else []),
                *([SaveAt(3, save)] if save else []),
            ],
            **settings,
        }
    )
    style = SceneStyle()
    data = SceneDataModule(
        style, train_scenes=13, val_scenes=4, batch_size=PROMPTS // world, eval_batch_size=2, num_workers=0, seed=3
    )
    trainer.fit(made, data, ckpt_path=ckpt_path)
    return trainer


def rows(folder):
    return json.loads((folder / "rows.json").read_text())


ADAM = partial(torch.optim.AdamW, lr=1e-3)


def on_one(source, out):
    """The same on one process, and what is compared with."""
    train(with_answers(source), out / "one", steps=5, save=out / "one.ckpt", export="float32")
    train(module(source, FarApart), out / "one_far", steps=FAR_STEPS)
    train(module(source, FarApart, loss=TokenMean()), out / "one_tokens", steps=5)
    train(supervised(source), out / "one_sft", steps=5)
    lora = replace(source, lora=Lora(rank=2), gradient_checkpointing=True)
    adapters = module(lora, optimizer=ADAM)
    train(adapters, out / "one_lora", steps=5, save=out / "one_lora.ckpt", export="bfloat16")
    train(module(source), out / "one_average", steps=5, average=0.6)


def two(**settings):
    # A trainer takes a strategy for itself.
    return {"world": 2, "strategy": FullySharded(**settings)}


def on_two(source, out):
    """Everything that two processes do, in one start of them; called on each."""
    ours = with_answers(source)
    train(ours, out / "two", steps=5, save=out / "two.ckpt", export="float32", **two())
    train(module(source, FarApart), out / "two_far", steps=FAR_STEPS, **two())
    train(module(source, FarApart), out / "ddp_far", steps=FAR_STEPS, world=2, strategy="ddp")
    train(module(source, FarApart, loss=TokenMean()), out / "ddp_tokens", steps=5, world=2, strategy="ddp")
    train(supervised(source), out / "ddp_sft", steps=5, world=2, strategy="ddp")
    # Files of one process and of two, each resumed by the other.
    train(with_answers(source), out / "two_on", steps=5, ckpt_path=out / "one.ckpt", **two())
    # Adapters, recomputed activations, shards on the disk.
    lora = replace(source, lora=Lora(rank=2), gradient_checkpointing=True)
    train(
        module(lora, optimizer=ADAM),
        out / "shards",
        steps=5,
        save=out / "three.shards",
        **two(sharded_checkpoints=True),
    )
    train(
        module(lora, optimizer=ADAM),
        out / "shards_on",
        steps=5,
        ckpt_path=out / "three.shards",
        **two(sharded_checkpoints=True),
    )
    adapters = module(lora, optimizer=ADAM)
    train(adapters, out / "lora_on", steps=5, ckpt_path=out / "one_lora.ckpt", export="bfloat16", **two())
    # The average of sharded weights, in one file and in shards, and resumed from the latter.
    train(module(source), out / "average", steps=5, average=0.6, **two())
    shards = two(sharded_checkpoints=True)
    train(module(source), out / "average_shards", steps=5, average=0.6, save=out / "average.shards", **shards)
    shards = two(sharded_checkpoints=True)
    train(module(source), out / "average_on", steps=5, average=0.6, ckpt_path=out / "average.shards", **shards)
    # Rollouts of validation between steps, and gathering in bfloat16.
    train(
        module(source),
        out / "mixed",
        steps=2,
        precision="bf16-mixed",
        limit_val_batches=2,
        val_check_interval=1,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=1,
        **two(),
    )


def as_torchrun(rank, port, source, out, work):
    """One of two processes, with the environment that torchrun gives it."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "tests"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "GROUP_RANK": "0"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2"}
    work(source, out)
    torch.distributed.destroy_process_group()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_two(source, out, work=on_two):
    processes.start_two(as_torchrun, free_port(), source, out, work)
