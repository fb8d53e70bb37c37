"""Trainings with vLLM in processes of their own: one that is killed, one that resumes, and two beside each other.

``python -m tests.vllm.runs NAME FOLDER [URL]`` runs one of the functions below.
"""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint

from tests.strategies.runs import free_port
from tests.vllm.engines import SOURCE, encode, new_sampler, scenes, tokenizer, train
from vr1.data import SceneDataModule, SceneStyle
from vr1.losses import GRPO
from vr1.modules.grpo import GRPOModule
from vr1.rollout import Sampling, VLLMSampler
from vr1.rollout.vllm.local import LocalEngine
from vr1.strategies import FullySharded

# Prompts of a step, whatever the number of processes.
PROMPTS = 4
STEPS = 6
SAVED_AFTER = 3


def module(sampler=None, **settings):
    return GRPOModule(
        policy=SOURCE,
        sampling=Sampling(group_size=4, max_new_tokens=48),
        evaluation=Sampling(group_size=1, temperature=0.0, max_new_tokens=48),
        loss=GRPO(kl_coef=0.0, correction="token"),
        optimizer=partial(torch.optim.AdamW, lr=1e-4),
        sampler=sampler or VLLMSampler(cache_gib=0.25, max_sequences=64),
        seed=3,
        **settings,
    )


class Steps(Callback):
    """What every step sampled and logged."""

    def __init__(self):
        self.steps = {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        groups = pl_module.training_state.scored_groups
        (rollout,) = pl_module.training_state.rollout_batches.values()
        self.steps[trainer.global_step] = {
            # An update on the rollout of a checkpoint has no texts, rewards and gap.
            "texts": groups.texts if groups else None,
            "sampler": rollout.sampler_log_probs.sum().item(),
            "reward": metrics.get("reward/total"),
            "gap": metrics.get("grpo/sampler_gap"),
            "effective": metrics["grpo/effective_samples"],
        }


class SaveAndDie(Checkpoint):
    """Saves after a step, and ends the process at the next one as ``kill -9`` does."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == SAVED_AFTER:
            trainer.save_checkpoint(self.path)
        if trainer.global_step == SAVED_AFTER + 1:
            os.kill(os.getpid(), signal.SIGKILL)


def fit(made, folder, callbacks=(), ckpt_path=None, steps=STEPS, world=1, **settings):
    pl.seed_everything(1)
    found = Steps()
    trainer = pl.Trainer(
        **{
            "accelerator": "cpu",
            "devices": world,
            "max_steps": steps,
            "max_epochs": -1,
            "limit_val_batches": 0,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            "callbacks": [found, *callbacks],
            **settings,
        }
    )
    data = SceneDataModule(
        SceneStyle(), train_scenes=12, val_scenes=4, batch_size=PROMPTS // world, num_workers=0, seed=3
    )
    trainer.fit(made, data, ckpt_path=ckpt_path)
    return found.steps


def killed(folder):
    """A training of two updates a rollout, killed in the middle of a rollout after a checkpoint."""
    fit(module(updates_per_rollout=2), folder, [SaveAndDie(folder / "last.ckpt")], enable_checkpointing=True)


def resumed(folder):
    """The rest of it, in a new process with a new engine."""
    steps = fit(module(updates_per_rollout=2), folder, ckpt_path=folder / "last.ckpt")
    (folder / "resumed.json").write_text(json.dumps(steps))


def old_features(folder):
    """Image features of old weights: they are known to the scheduler, and no longer there."""
    policy, sampler, prompts = SOURCE.load().eval(), new_sampler(), encode(scenes(2))
    sampling = Sampling(group_size=2, max_new_tokens=8)
    sampler.synchronise(policy, prompts)
    sampler.sample(policy, prompts, sampling, tokenizer())
    train(policy, rate=1e-4)
    LocalEngine.reset = lambda engine: engine._llm.reset_prefix_cache()
    sampler.synchronise(policy, prompts)
    sampler.sample(policy, prompts, sampling, tokenizer())
    (folder / "unnoticed").touch()


def _join(rank, port):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "tests"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "GROUP_RANK": "0"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2"}


def _rank(rank, port, folder):
    _join(rank, port)
    sampler = VLLMSampler(cache_gib=0.25, max_sequences=64)
    for name, strategy in (("sharded", FullySharded()), ("ddp", "ddp")):
        steps = fit(module(sampler), folder / name, steps=3, world=2, strategy=strategy)
        (folder / f"{name}{rank}.json").write_text(json.dumps(steps))
    torch.distributed.destroy_process_group()


def _rank_with_server(rank, port, folder, url):
    _join(rank, port)
    made = module(VLLMSampler(url=url, max_sequences=64))
    steps = fit(made, folder / "served", steps=3, world=2, strategy=FullySharded())
    (folder / f"served{rank}.json").write_text(json.dumps(steps))
    torch.distributed.destroy_process_group()


def two_served(folder, url):
    """Two processes, the weights in shards, and one server."""
    torch.multiprocessing.spawn(_rank_with_server, (free_port(), folder, url), nprocs=2)


def two(folder):
    """Two processes with an engine each: all weights on both, then in shards."""
    torch.multiprocessing.spawn(_rank, (free_port(), folder), nprocs=2)


if __name__ == "__main__":
    runs = {"killed": killed, "resumed": resumed, "old_features": old_features, "two": two, "two_served": two_served}
    runs[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
    # Threads of vLLM must not keep the process.
    sys.stdout.flush()
    os._exit(0)
