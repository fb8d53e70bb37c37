"""Records cached in memory, and records that take the place of unreadable ones."""

import multiprocessing
import pickle
import traceback

import lightning.pytorch as pl
import numpy as np
import pytest
from torch.utils.data import Dataset

from tests.modules.test_grpo import build
from tests.trainers import trainer
from vr1.data import SceneDataModule, SceneSource, SceneStyle
from vr1.data.mixture import SetsSource
from vr1.data.selection import SelectedSource
from vr1.data.source import CachedDataset
from vr1.errors import user_message


class Counting(Dataset):
    def __init__(self, length):
        self.source, self.reads = SceneSource(length), []

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        self.reads.append(index)
        return self.source[index]


def test_cached_records_are_read_once():
    source = Counting(4)
    cached = CachedDataset(source, capacity=3)
    for _ in range(3):
        for index in (2, 0, 3, 1):
            assert cached[index].origin == source.source[index].origin
            assert cached[index].image.tobytes() == source.source[index].image.tobytes()
    assert [source.reads.count(index) for index in (2, 0, 3)] == [1, 1, 1]
    assert source.reads.count(1) == 6
    assert len(cached) == 4


class Faulty(Dataset):
    """A data set of the user, with a fault in its code that one record meets."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        if index == 2:
            raise KeyError("boxes")
        return self.source[index]


class FaultyDataModule(SceneDataModule):
    def read(self, split):
        return Faulty(super().read(split))


@pytest.mark.parametrize(("workers", "cache_records"), [(0, 0), (0, 9), (1, 0)])
def test_an_error_of_a_data_set_of_the_user_names_the_record(source, tmp_path, workers, cache_records):
    settings = {"train_scenes": 4, "val_scenes": 1, "batch_size": 2, "seed": 3, "cache_records": cache_records}
    with pytest.raises(KeyError) as raised:
        trainer(tmp_path, max_steps=2).fit(build(source, seed=2), FaultyDataModule(**settings, num_workers=workers))
    # A worker process passes an error on as its traceback in text.
    text = "".join(traceback.format_exception(raised.value)).replace("\\n", "\n")
    assert "\nthis was record 2 of Faulty\n" in text
    assert user_message(raised.value) is None, "the traceback stays: it is a fault in the user's code"


@pytest.mark.parametrize("workers", [0, 1])
def test_training_and_evaluation_are_the_same(source, tmp_path, workers):
    metrics = []
    for cache_records in (0, 100):
        pl.seed_everything(1)
        validated = {"limit_val_batches": 1.0, "val_check_interval": 2, "check_val_every_n_epoch": None}
        training = trainer(tmp_path, max_steps=4, max_epochs=-1, **validated)
        data = SceneDataModule(
            SceneStyle(),
            train_scenes=4,
            val_scenes=2,
            batch_size=2,
            num_workers=workers,
            seed=3,
            cache_records=cache_records,
        )
        training.fit(build(source, seed=2), data)
        metrics.append({name: float(value) for name, value in training.callback_metrics.items() if "perf" not in name})
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("steps", [3, 4])
def test_workers_end_with_a_training(source, tmp_path, steps):
    """In the middle of an epoch and at its end, while trainer and data are still there, as in a notebook."""
    before = set(multiprocessing.active_children())
    data = SceneDataModule(SceneStyle(), train_scenes=4, val_scenes=2, batch_size=2, num_workers=1, seed=3)
    for _ in range(2):
        training = trainer(tmp_path, max_steps=steps, max_epochs=-1, limit_val_batches=0)
        training.fit(build(source, seed=2), data)
        assert training.global_step == steps
        assert set(multiprocessing.active_children()) <= before


def test_wrong_settings():
    with pytest.raises(ValueError, match=r"data\.cache_records=-1 must be at least 0"):
        SceneDataModule(cache_records=-1)
    with pytest.raises(ValueError, match=r"data\.num_workers=-1 must be at least 0"):
        SceneDataModule(num_workers=-1)


def test_unreadable_records_are_reported_by_the_record_that_takes_their_place(make, document, tmp_path, caplog):
    make(document)
    for name in ("a.png", "b 2.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:60])
    source = make(document, images=False, bad_records="skip")
    caplog.clear()
    record = source[0]
    assert record.image_id == 9
    assert [(item.index, item.used) for item in record.replaces] == [(0, 2), (1, 2)]
    for item, name in zip(record.replaces, ("a.png", "b 2.png"), strict=True):
        assert f"{name}: the image is damaged or cut short" in item.error
    # The log has the same, a line each.
    assert caplog.messages == [str(item) for item in record.replaces]
    assert source[2].replaces == ()
    # The report passes through sources that combine others.
    combined = SetsSource({"first": SelectedSource(source, np.array([2, 1]))})
    assert [[item.index for item in record.replaces] for record in (combined[0], combined[1])] == [[], [1]]
    assert combined.reports() == [source.report]
    assert pickle.loads(pickle.dumps(combined[1].replaces)) == combined[1].replaces
