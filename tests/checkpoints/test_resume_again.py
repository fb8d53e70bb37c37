"""A training that is stopped more than once, or goes on with other batches: the same records, counts and rollouts."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.save_at import SaveAt
from tests.trainers import trainer
from vr1.checkpoints.state import adapt_window, reshard_rollouts
from vr1.data import SceneDataModule, SceneStyle
from vr1.losses import GRPO
from vr1.modules.grpo import GRPOModule
from vr1.modules.sft import SFTModule
from vr1.rollout import Sampling
from vr1.types import RolloutBatch

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint"),
]


class Records(Callback):
    """The records of every optimizer step, by its number, and Lightning's counts after it."""

    def __init__(self):
        self.steps, self.counts, self.epochs = {}, {}, []

    def on_train_epoch_end(self, trainer, module):
        # The last one is cut off where the steps run out.
        self.epochs.append((trainer.current_epoch, trainer.global_step))

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.steps.setdefault(trainer.global_step, []).extend(record.image_id for record in batch.records)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        progress = trainer.fit_loop.epoch_loop.batch_progress.state_dict()
        self.counts[trainer.global_step] = {part: progress[part] for part in ("total", "current")}


def sft(source):
    # Validations take no longer than they must; what their answers are does not matter here.
    evaluation = Sampling(group_size=1, temperature=0.0, max_new_tokens=4)
    return SFTModule(policy=source, evaluation=evaluation, optimizer=partial(torch.optim.SGD, lr=0.01))


def grpo(source, updates=2):
    return GRPOModule(
        policy=source,
        sampling=Sampling(group_size=2, max_new_tokens=4),
        evaluation=Sampling(group_size=1, temperature=0.0, max_new_tokens=4),
        loss=GRPO(kl_coef=0.0),
        updates_per_rollout=updates,
        optimizer=partial(torch.optim.SGD, lr=0.01),
    )


def fit(module, folder, steps, *, save=(), ckpt_path=None, batch_size=2, accumulate=1, scenes=17, **settings):
    watched = Records()
    saving = [SaveAt(*each) for each in save]
    run = trainer(
        folder,
        [watched, *saving],
        **{"max_steps": steps, "max_epochs": -1, "enable_checkpointing": bool(save)} | settings,
        accumulate_grad_batches=accumulate,
    )
    style = SceneStyle()
    data = SceneDataModule(
        style, train_scenes=scenes, val_scenes=2, batch_size=batch_size, eval_batch_size=2, num_workers=0, seed=3
    )
    run.fit(module, data, ckpt_path=ckpt_path)
    return watched


def test_stopped_twice_within_an_epoch_and_within_the_next(source, tmp_path):
    """Eight steps an epoch."""
    whole = fit(sft(source), tmp_path, 12)
    seen, before = {}, None
    for stop in (2, 3, 9, 10, 12):
        file = tmp_path / f"{stop}.ckpt"
        watched = fit(sft(source), tmp_path, min(stop + 1, 12), save=[(stop, file)], ckpt_path=before)
        assert len(watched.steps) > 0
        seen |= watched.steps
        before = file
    assert seen == whole.steps
    assert len(whole.steps) == 12


@pytest.mark.parametrize(
    ("first", "second", "hook", "step"),
    [
        ((4, 1), (2, 2), "batch", 3),
        ((4, 1), (2, 2), "batch", 4),
        ((4, 1), (2, 2), "validation", 3),
        ((4, 1), (2, 2), "epoch", 4),
        ((2, 2), (4, 1), "batch", 3),
        ((2, 2), (1, 4), "validation", 3),
        ((2, 2), (1, 4), "epoch", 4),
    ],
)
def test_other_accumulation_goes_on_with_the_same_records_and_counts(source, tmp_path, first, second, hook, step):
    """Four steps an epoch; the checkpoint is of its middle or of its end."""

    def run(steps, batches, **stop):
        size, accumulate = batches
        # Validation in the middle of an epoch, or at its end.
        validates = {} if hook == "batch" else {"limit_val_batches": 1, "val_check_interval": accumulate * step}
        return fit(sft(source), tmp_path, steps, batch_size=size, accumulate=accumulate, **validates, **stop)

    file = tmp_path / "stop.ckpt"
    whole = run(6, second)
    run(5, first, save=[(step, file, hook)])
    resumed = run(6, second, ckpt_path=file)
    assert sorted(resumed.steps) == [number for number in range(6) if number >= step]
    for number, records in resumed.steps.items():
        assert records == whole.steps[number], f"step {number}"
    for number, counts in resumed.counts.items():
        assert counts == whole.counts[number], f"after step {number}"


@pytest.mark.parametrize(("last", "accumulate"), [(3, 1), (8, 1), (11, 1), (16, 1), (3, 2), (4, 2), (6, 2)])
def test_a_finished_training_goes_on_as_one_that_was_longer_from_the_start(source, tmp_path, last, accumulate):
    """Eight batches an epoch; the steps run out within one of the first two epochs, or with it. No validation."""

    def run(steps, **settings):
        return fit(sft(source), tmp_path, steps, accumulate=accumulate, **settings)

    files = {hook: tmp_path / f"{hook}.ckpt" for hook in ("epoch", "training")}
    total = last + 10 // accumulate
    whole = run(total)
    run(last, save=[(last, file, hook) for hook, file in files.items()])
    for file in files.values():
        resumed = run(total, ckpt_path=file)
        assert sorted(resumed.steps) == list(range(last, total))
        for number, records in resumed.steps.items():
            assert records == whole.steps[number], f"{file.stem}, step {number}"
        for number, counts in resumed.counts.items():
            assert counts == whole.counts[number], f"{file.stem}, after step {number}"
        assert resumed.epochs == whole.epochs[-len(resumed.epochs) :]


def test_a_batch_that_is_not_completed_stays_one():
    counts = {"ready": 3, "started": 3, "processed": 3, "completed": 2}
    loop = {"state_dict": {"combined_loader": [{"window": 1}]}}
    loop["epoch_loop.batch_progress"] = {"total": dict(counts), "current": dict(counts)}
    adapt_window({"loops": {"fit_loop": loop}}, 2)
    expected = {"ready": 6, "started": 6, "processed": 6, "completed": 5}
    assert loop["epoch_loop.batch_progress"] == {"total": expected, "current": expected}


def piece(first, prompts, length, group=2, of_tokens=False):
    """Completions whose tokens name their prompt."""
    numbers = torch.arange(first, first + prompts)
    tokens = numbers[:, None, None].expand(prompts, group, length).clone()
    return RolloutBatch(
        tokens=tokens,
        mask=torch.ones_like(tokens, dtype=torch.bool),
        advantages=(tokens if of_tokens else numbers[:, None].expand(prompts, group)).float().clone(),
        sampler_log_probs=-3.0 * tokens,
        reference_log_probs=-tokens.float(),
        old_log_probs=-2.0 * tokens,
    ).state_dict()


@pytest.mark.parametrize("of_tokens", [False, True], ids=["advantages of completions", "advantages of tokens"])
@pytest.mark.parametrize(("window", "world"), [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (1, 4), (2, 4)])
def test_rollouts_in_flight_are_dealt_out_in_the_order_of_their_prompts(window, world, of_tokens):
    """Two batches on two processes, of two prompts each and of unlike lengths."""
    sizes = [[(0, 2, 3), (2, 2, 5)], [(4, 2, 1), (6, 2, 4)]]
    stored = [[piece(*size, of_tokens=of_tokens) for size in row] for row in sizes]
    dealt = reshard_rollouts(stored, window, world)
    assert [len(row) for row in dealt] == [world] * window
    order = []
    for state in (state for row in dealt for state in row):
        batch = RolloutBatch.from_state(state, torch.device("cpu"))
        assert len(batch.tokens) == 8 // (window * world)
        assert batch.tokens.shape == batch.mask.shape == batch.reference_log_probs.shape == batch.old_log_probs.shape
        assert batch.mask.any(0).any(0).all(), "columns that no completion reaches"
        if of_tokens:
            assert batch.advantages.shape == batch.tokens.shape
        for row, number in enumerate(batch.advantages.flatten(1)[:, 0].int().tolist()):
            length = [3, 3, 5, 5, 1, 1, 4, 4][number]
            assert batch.mask[row].sum(-1).tolist() == [length, length]
            assert (batch.tokens[row][batch.mask[row]] == number).all()
            if of_tokens:
                assert (batch.advantages[row][batch.mask[row]] == number).all()
            assert (batch.reference_log_probs[row][batch.mask[row]] == -number).all()
            assert (batch.old_log_probs[row][batch.mask[row]] == -2 * number).all()
            assert (batch.sampler_log_probs[row][batch.mask[row]] == -3 * number).all()
            order.append(number)
    assert order == list(range(8))


def test_rollouts_in_flight_go_on_in_training_and_not_in_evaluation(source, tmp_path):
    first, file = grpo(source), tmp_path / "stop.ckpt"
    fit(first, tmp_path, 2, save=[(1, file)], accumulate=2)
    stored = torch.load(file, weights_only=True)["vr1_rollouts"]
    assert len(stored) == 2

    tested = grpo(source)
    data = SceneDataModule(SceneStyle(), val_scenes=2, test_scenes=2, eval_batch_size=2, num_workers=0)
    run = trainer(tmp_path, limit_val_batches=1)
    run.validate(tested, data, ckpt_path=file, verbose=False)
    run.test(tested, data, ckpt_path=file, verbose=False)
    assert not tested.training_state.rollout_batches

    texts = []

    class Texts(Records):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            slots = module.training_state.rollout_batches
            texts.append([slots[slot].tokens.tolist() for slot in sorted(slots)])

    resumed = grpo(source)
    run = trainer(tmp_path, [Texts()], max_steps=2, max_epochs=-1, accumulate_grad_batches=2)
    run.fit(
        resumed,
        SceneDataModule(SceneStyle(), train_scenes=17, val_scenes=2, batch_size=2, num_workers=0, seed=3),
        ckpt_path=file,
    )
    assert texts[0] == [state["tokens"].tolist() for [state] in stored]
