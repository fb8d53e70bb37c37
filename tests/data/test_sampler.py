"""The order of training and the position in it, the latter through real trainers that train one number."""

from itertools import chain, pairwise

import lightning.pytorch as pl
import pytest
import torch

from tests.save_at import SaveAt
from vr1.checkpoints.state import adapt_window
from vr1.data.sampler import RepeatedBatches, TrainingLoader

pytestmark = [
    pytest.mark.filterwarnings("error:You're resuming from a checkpoint"),
    pytest.mark.filterwarnings("ignore:The .*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec"),
]


class Seen(pl.LightningModule):
    """Remembers the records of every batch, with the step that they were for."""

    def __init__(self, loader):
        super().__init__()
        self.loader, self.records = loader, []
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def train_dataloader(self):
        return self.loader

    def training_step(self, batch, batch_idx):
        self.records.append((self.trainer.current_epoch, batch_idx, batch))
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def val_dataloader(self):
        return torch.utils.data.DataLoader(range(2))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_load_checkpoint(self, checkpoint):
        adapt_window(checkpoint, self.trainer.accumulate_grad_batches)


def loader(batch_size=2, repeats=1, window=1, workers=0, length=13, seed=1):
    batches = RepeatedBatches(length, batch_size, repeats, window, seed=seed)
    return TrainingLoader(range(length), batches, collate_fn=list, num_workers=workers)


def fit(tmp_path, data, steps=10, callbacks=(), ckpt_path=None, **settings):
    module = Seen(data)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
        accumulate_grad_batches=data.batches.window,
        **({"limit_val_batches": 0} | settings),
    )
    trainer.fit(module, ckpt_path=ckpt_path)
    return module.records


@pytest.mark.parametrize(("repeats", "window"), [(1, 1), (2, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_a_resumed_run_sees_the_next_records(tmp_path, repeats, window, stop):
    def make():
        return loader(batch_size=1 if window == 3 else 2, repeats=repeats, window=window)

    uninterrupted = fit(tmp_path, make())
    fit(tmp_path, make(), stop + 1, [SaveAt(stop, tmp_path / "at.ckpt")])
    assert fit(tmp_path, make(), ckpt_path=tmp_path / "at.ckpt") == uninterrupted[stop * window :]
    # Every epoch has its own order, and none of them was started twice.
    epochs = [[record for e, _, batch in uninterrupted for record in batch if e == epoch] for epoch in range(3)]
    assert all(first != second for first, second in pairwise(epochs) if first and second)


@pytest.mark.parametrize(("hook", "step"), [("epoch", 6), ("validation", 4), ("validation", 6)])
def test_resume_from_other_moments(tmp_path, hook, step):
    # Six batches an epoch, validated after every second.
    settings = {"limit_val_batches": 1, "val_check_interval": 2, "num_sanity_val_steps": 0}
    uninterrupted = fit(tmp_path, loader(), **settings)
    fit(tmp_path, loader(), callbacks=[SaveAt(step, tmp_path / "at.ckpt", hook)], **settings)
    assert fit(tmp_path, loader(), ckpt_path=tmp_path / "at.ckpt", **settings) == uninterrupted[step:]


def test_what_workers_have_prepared_is_not_counted(tmp_path):
    uninterrupted = fit(tmp_path, loader())
    fit(tmp_path, loader(workers=1), 3, [SaveAt(2, tmp_path / "at.ckpt")])
    assert fit(tmp_path, loader(workers=1), 5, ckpt_path=tmp_path / "at.ckpt") == uninterrupted[2:5]


def test_an_epoch_cut_short_is_followed_by_the_beginning_of_the_next(tmp_path):
    records = fit(tmp_path, loader(), steps=6, limit_train_batches=2)
    by_epoch = RepeatedBatches(13, 2, seed=1)
    for epoch in range(3):
        by_epoch.set_epoch(epoch)
        assert [batch for e, _, batch in records if e == epoch] == list(by_epoch)[:2]


@pytest.mark.parametrize(("before", "after"), [((4, 1), (2, 2)), ((2, 2), (4, 1)), ((1, 4), (2, 2))])
def test_resume_with_other_batches_of_the_same_step(tmp_path, before, after):
    def steps(records, window):
        batches = [batch for _, _, batch in records]
        return [list(chain(*batches[at : at + window])) for at in range(0, len(batches), window)]

    uninterrupted = steps(fit(tmp_path, loader(4, 2, 1), 13), 1)
    saving = [SaveAt(5, tmp_path / "at.ckpt")]
    fit(tmp_path, loader(before[0], 2, before[1]), 6, saving)
    resumed = fit(tmp_path, loader(after[0], 2, after[1]), 13, ckpt_path=tmp_path / "at.ckpt")
    assert steps(resumed, after[1]) == uninterrupted[5:]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"batch_size": 3},
            r"epoch with 2 as the records of one optimizer step .*, and now it is 3: set it to 2 again",
        ),
        ({"length": 14}, "with 13 as the number of training records, and now it is 14"),
        ({"seed": 2}, "with 1 as the seed of their order .*, and now it is 2"),
        ({"repeats": 2}, "with 1 as model.updates_per_rollout, and now it is 2"),
    ],
)
def test_other_records_in_the_middle_of_an_epoch_are_refused(changed, message):
    first = loader()
    next(iter(first))
    with pytest.raises(ValueError, match=message):
        loader(**changed).load_state_dict(first.state_dict())


@pytest.mark.parametrize("changed", [{"batch_size": 3}, {"length": 14}, {"seed": 2}, {"repeats": 2}])
def test_before_the_first_batch_any_data_will_do(changed):
    resumed = loader(**changed)
    resumed.load_state_dict(loader().state_dict())
    assert list(resumed) == list(loader(**changed))


def test_half_an_optimizer_step_is_completed():
    first, resumed = loader(window=2), loader(window=2)
    next(iter(first))
    resumed.load_state_dict(first.state_dict())
    assert list(resumed) == list(loader(window=2))[1:]


@pytest.mark.parametrize(("batch_size", "window"), [(4, 1), (1, 4)])
def test_half_an_optimizer_step_is_refused_with_other_batches(batch_size, window):
    first = loader(window=2)
    next(iter(first))
    message = f"in the middle of an optimizer step of 2 batches, and now a step has {window}: .* resume from an earlier"
    with pytest.raises(ValueError, match=message):
        loader(batch_size, window=window).load_state_dict(first.state_dict())


def carrying(start=0, repeats=1, window=3, window_of=None, multiple=None):
    """A loader whose batches come as tuples, the first of a step with the records of its others."""
    batches = RepeatedBatches(12, 1, repeats, window, multiple=multiple)
    batches.start = start

    def first_of_step(ahead):
        return (*ahead[0], [batch[0] for batch in ahead[1:]])

    return TrainingLoader(
        range(12), batches, first_of_step=first_of_step, window_of=window_of, collate_fn=tuple, num_workers=0
    )


def test_the_first_batch_of_a_step_carries_the_others():
    expected = [(first, [first + 1, first + 2]) for first in range(0, 12, 3)]
    listed = list(carrying())
    assert listed[::3] == expected
    assert [batch for at, batch in enumerate(listed) if at % 3] == [(at,) for at in range(12) if at % 3]
    # Within a step the first that comes carries the rest of it; the last has nothing to carry.
    assert list(carrying(start=4))[:3] == [(4, [5]), (5,), (6, [7, 8])]
    assert list(carrying(start=5))[:2] == [(5,), (6, [7, 8])]


def test_a_repeated_step_carries_its_batches_once():
    listed = list(carrying(repeats=2))
    assert listed[:9] == [(0, [1, 2]), (1,), (2,), (0,), (1,), (2,), (3, [4, 5]), (4,), (5,)]
    assert list(carrying(start=4, repeats=2))[:3] == [(1,), (2,), (3, [4, 5])]


def test_what_is_carried_is_not_counted_as_received():
    data = carrying()
    batches = iter(data)
    for number in range(1, 6):
        next(batches)
        assert data.state_dict()["batches"] == number


def test_the_batches_of_a_step_can_change_with_the_epoch():
    """Two in epochs 0 and 1, three from then on; every epoch has the same number of batches."""

    def make():
        return carrying(window=2, window_of=lambda epoch: 2 if epoch < 2 else 3, multiple=6)

    data, epochs = make(), []
    for epoch in range(3):
        data.set_epoch(epoch)
        epochs.append(list(data))
        assert len(epochs[-1]) == len(data) == 12
    assert epochs[0] == epochs[1]
    assert [len(batch) for batch in epochs[1][:4]] == [2, 1, 2, 1]
    assert [len(batch) for batch in epochs[2][:4]] == [2, 1, 1, 2]
    # Resumed in the last epoch.
    stopped = make()
    for epoch in range(3):
        stopped.set_epoch(epoch)
        batches = iter(stopped)
        read = [next(batches) for _ in range(4 if epoch == 2 else 12)]
    assert read == epochs[2][:4]
    resumed = make()
    resumed.load_state_dict(stopped.state_dict())
    resumed.set_epoch(2)
    assert [batch[0] for batch in resumed] == [batch[0] for batch in epochs[2]][4:]


@pytest.mark.parametrize(("repeats", "window"), [(1, 1), (2, 1), (3, 2), (2, 4)])
def test_every_full_window_is_repeated(repeats, window):
    batches = RepeatedBatches(23, batch_size=4, repeats=repeats, window=window)
    listed = list(batches)
    full = 23 // (4 * window) * window
    assert len(listed) == len(batches) == full * repeats
    for start in range(0, full * 4, 4):
        assert listed.count(list(range(start, start + 4))) == repeats


def test_a_random_order_is_drawn_once_per_window():
    listed = list(RepeatedBatches(12, batch_size=3, repeats=2, window=2, seed=0))
    assert listed[0:2] == listed[2:4]
    assert listed[4:6] == listed[6:8]
    assert sorted(index for batch in listed for index in batch) == sorted([*range(12)] * 2)


def test_every_epoch_and_seed_has_an_order_of_its_own():
    batches, other = RepeatedBatches(30, 2, seed=3), RepeatedBatches(30, 2, seed=4)
    orders = [list(batches), list(other)]
    for epoch in (1, 2):
        batches.set_epoch(epoch)
        orders.append(list(batches))
    assert all(first != second for at, first in enumerate(orders) for second in orders[:at])
    batches.set_epoch(0)
    assert list(batches) == orders[0]


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_step_sees_the_same_records_however_they_are_divided(repeats):
    def steps(batch_size, window, world):
        ranks = [RepeatedBatches(27, batch_size, repeats, window, seed=5, rank=r, world=world) for r in range(world)]
        batches = [list(rank) for rank in ranks]
        return [
            [index for slot in range(at, at + window) for rank in batches for index in rank[slot]]
            for at in range(0, len(batches[0]), window)
        ]

    one_process = steps(8, 1, 1)
    assert len(one_process) == 3 * repeats
    for division in ((4, 1, 2), (4, 2, 1), (2, 2, 2), (1, 2, 4), (1, 8, 1)):
        assert steps(*division) == one_process, division


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 4}, "3 training records do not fill one batch of batch_size=4; lower batch_size"),
        (
            {"batch_size": 1, "window": 2, "world": 2},
            r"3 training .* one optimizer step of batch_size=1 x accumulate_grad_batches=2 x 2 processes; lower",
        ),
    ],
)
def test_too_few_records_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RepeatedBatches(3, **settings)
