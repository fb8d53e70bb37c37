"""Six steps in one go against three, a checkpoint, and three more: the same to the last bit.

The checkpoint lies in the middle of a shuffled epoch and, with two updates per rollout, between the two.
"""

import json
import os
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils._pytree import tree_flatten

from callbacks import RuleRefinement, Stage
from tests.processes import two_ranks
from tests.save_at import SaveAt
from vr1.data import SceneDataModule, SceneStyle
from vr1.modules.grpo import GRPOModule
from vr1.modules.sft import SFTModule
from vr1.policy import Lora, PolicySource
from vr1.rewards import Criterion, Reward, RewardTerm
from vr1.rollout import Sampling
from vr1.seeding import random_states

pytestmark = [
    pytest.mark.filterwarnings("error:You're resuming from a checkpoint"),
    pytest.mark.filterwarnings("ignore:The .*_dataloader' does not have many workers"),
]
STEPS, STOP = 6, 3


class Hash(RewardTerm):
    """A reward that an untrained model earns differently by every completion, scaled by the stage."""

    def score(self, match, criterion):
        return zlib.crc32(match.detections.completion.encode()) % 13 / 13 * criterion.xi0


class RewardedByHash(GRPOModule):
    def __init__(self, **settings):
        super().__init__(reward=Reward(terms={"hash": Hash()}), **settings)


class Diary(Callback):
    """What each step was about and came to, written when training ends, on every process."""

    def __init__(self, folder):
        self.folder, self.rows = Path(folder), []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        timeless = {
            k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("reward", "grpo", "sft", "rule"))
        }
        self.rows.append({"records": [record.image_id for record in batch.records], **timeless})

    def on_train_end(self, trainer, module):
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(self.rows))
        trainer.save_checkpoint(self.folder / "end.ckpt")


def grpo(source, updates=2):
    return RewardedByHash(
        policy=source,
        sampling=Sampling(group_size=2, max_new_tokens=5),
        updates_per_rollout=updates,
        seed=2,
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        lr_scheduler=partial(torch.optim.lr_scheduler.LinearLR, total_iters=STEPS),
    )


def sft(source):
    return SFTModule(policy=source, optimizer=partial(torch.optim.AdamW, lr=1e-2))


def fit(module, folder, steps=STEPS, save=None, ckpt_path=None, batch_size=4, scenes=13, **settings):
    """Train, and return the rows of the diary of each process and the last checkpoint."""
    stages = [
        Stage(name="easy", criterion=Criterion(0.5, 0.5, 0.75)),
        Stage(name="hard", criterion=Criterion(0.75, 0.75, 0.9), at_step=5),
    ]
    saving = [SaveAt(STOP, save)] if save else []
    pl.seed_everything(1)
    os.environ.pop("MASTER_PORT", None)  # see `own_environment` in conftest.py
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=bool(save),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[RuleRefinement(stages), Diary(folder), *saving],
        **({"devices": 1} | settings),
    )
    data = SceneDataModule(
        SceneStyle(), train_scenes=scenes, val_scenes=1, batch_size=batch_size, num_workers=0, seed=3
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    rows = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("rank*.json"))]
    return rows, torch.load(folder / "end.ckpt", weights_only=True)


def assert_goes_on(resumed, whole):
    """A resumed run logs what the uninterrupted one logs, which also has the figures of the steps before."""
    assert len(resumed) == len(whole)
    for now, then in zip(resumed, whole, strict=True):
        assert now == {name: then[name] for name in now}
    assert resumed[-1].keys() == whole[-1].keys()


def assert_same(one, two):
    """Two checkpoints hold the same weights, optimizer and schedule, to the last bit."""
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        first, second = tree_flatten(one[part])[0], tree_flatten(two[part])[0]
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


MODULES = {
    "grpo": grpo,
    "grpo_lora_dropout": lambda source: grpo(replace(source, lora=Lora(rank=2, dropout=0.3))),
    "grpo_qlora": lambda source: grpo(replace(source, lora=Lora(rank=2), quantize="nf4"), updates=1),
    "sft": sft,
}


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_three_and_three_make_six(make, source, tmp_path):
    [whole], end = fit(make(source), tmp_path / "whole")
    fit(make(source), tmp_path / "first", steps=STOP + 1, save=tmp_path / "three.ckpt")
    [resumed], resumed_end = fit(make(source), tmp_path / "second", ckpt_path=tmp_path / "three.ckpt")
    assert_goes_on(resumed, whole[STOP:])
    assert_same(resumed_end, end)
    changed = torch.load(tmp_path / "three.ckpt", weights_only=True)["state_dict"]
    assert any((changed[name] != value).any() for name, value in end["state_dict"].items()), "nothing was learned"


def test_accumulated_steps_resume_exactly(source, tmp_path):
    settings = {"batch_size": 2, "accumulate_grad_batches": 2}
    [whole], end = fit(grpo(source), tmp_path / "whole", **settings, save=tmp_path / "three.ckpt")
    [resumed], resumed_end = fit(grpo(source), tmp_path / "again", **settings, ckpt_path=tmp_path / "three.ckpt")
    assert_goes_on(resumed, whole[2 * STOP :])
    assert_same(resumed_end, end)


def by_step(ranks):
    """The records of every step, of all processes together in their order."""
    return [[record for row in rows for record in row["records"]] for rows in zip(*ranks, strict=True)]


def test_two_processes(source, tmp_path):
    two = {"batch_size": 2}
    whole, end = fit(grpo(source), tmp_path / "whole", save=tmp_path / "three.ckpt", **two, **two_ranks())
    again, again_end = fit(grpo(source), tmp_path / "again", ckpt_path=tmp_path / "three.ckpt", **two, **two_ranks())
    for now, then in zip(again, whole, strict=True):
        assert_goes_on(now, then[STOP:])
    assert_same(again_end, end)

    [alone], alone_end = fit(grpo(source), tmp_path / "alone", save=tmp_path / "alone.ckpt")
    assert by_step([alone]) == by_step(whole)
    [resumed], resumed_end = fit(grpo(source), tmp_path / "on one", ckpt_path=tmp_path / "three.ckpt")
    assert by_step([resumed]) == by_step(whole)[STOP:]
    both, both_end = fit(grpo(source), tmp_path / "on two", ckpt_path=tmp_path / "alone.ckpt", **two, **two_ranks())
    assert by_step(both) == by_step(whole)[STOP:]
    for other in (end, resumed_end, both_end):
        # Means of means round differently; AdamW makes much of little where a gradient is next to nothing.
        for name, value in alone_end["state_dict"].items():
            assert (other["state_dict"][name] - value).abs().mean() < 1e-4, name


class OneOfTwo(SingleDeviceStrategy):
    """As if there was one more process."""

    def __init__(self, rank):
        super().__init__(device="cpu")
        self.global_rank, self.world_size = rank, 2


class NotesRandomState(SFTModule):
    def on_train_start(self):
        super().on_train_start()
        self.random_state = torch.get_rng_state()


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_continues_its_own_random_numbers(source, tmp_path, rank):
    """With one stream for all, dropout would be the same in the batches of all processes."""
    _, checkpoint = fit(sft(source), tmp_path, steps=1)
    states = []
    for seed in (7, 8):
        torch.manual_seed(seed)
        states.append(random_states())
    torch.save({**checkpoint, "vr1_random_states": states}, tmp_path / "two.ckpt")
    module = NotesRandomState(policy=source)
    fit(module, tmp_path, steps=2, ckpt_path=tmp_path / "two.ckpt", strategy=OneOfTwo(rank))
    assert torch.equal(module.random_state, states[rank]["torch"])


class TestAdapters:
    def test_the_checkpoint_holds_no_base(self, source, tmp_path):
        _, whole = fit(sft(source), tmp_path / "whole", steps=1)
        _, end = fit(sft(replace(source, lora=Lora(rank=2), quantize="nf4")), tmp_path / "adapters", steps=1)
        assert end["state_dict"]
        assert all("lora_" in name for name in end["state_dict"])
        assert len(whole["state_dict"]) > len(end["state_dict"])
        assert PolicySource(**{**end["vr1"]["policy"], "lora": Lora(**end["vr1"]["policy"]["lora"])}).quantize == "nf4"

    @pytest.mark.parametrize("lora", [None, Lora(rank=3), Lora(rank=2, targets=["q_proj"])])
    def test_other_adapters_are_refused(self, source, tmp_path, lora):
        fit(sft(replace(source, lora=Lora(rank=2))), tmp_path, steps=1)
        with pytest.raises(ValueError, match=r"made with policy.lora=\{'rank': 2, .*; set them as they were"):
            fit(sft(replace(source, lora=lora)), tmp_path / "other", ckpt_path=tmp_path / "end.ckpt")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"batch_size": 5}, "records of one optimizer step"), ({"scenes": 14}, "number of training")],
)
def test_other_data_in_the_middle_of_an_epoch_are_refused(source, tmp_path, settings, message):
    fit(sft(source), tmp_path, steps=1)
    with pytest.raises(ValueError, match=message):
        fit(sft(source), tmp_path / "other", ckpt_path=tmp_path / "end.ckpt", **settings)
