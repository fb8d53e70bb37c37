"""Curves: what is recorded, and what is restored on resume."""

import json

import numpy as np
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from callbacks import Curves, RuleRefinement
from callbacks.curves import History
from tests.callbacks.tiny import TinyDetector
from tests.trainers import trainer

FIT = {"max_steps": 6, "num_sanity_val_steps": -1, "limit_val_batches": 1.0, "val_check_interval": 3}
REWARDS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


def test_history_of_a_training(tmp_path):
    curves = Curves()
    trainer(tmp_path, [RuleRefinement(), curves], **FIT).fit(TinyDetector(REWARDS))
    series = curves.history.series
    assert [step for step, _ in series["reward/total"]] == list(range(1, 7))
    assert [value for _, value in series["reward/total"]] == pytest.approx(REWARDS)
    assert [step for step, _ in series["val/map"]] == [0, 3, 6]
    assert series["val/map"][0][1] == pytest.approx(0.1)
    assert curves.switches == [(3, "advanced")]
    assert (tmp_path / "curves.png").exists()


def test_every_n_steps(tmp_path):
    curves = Curves(every_n_steps=2)
    trainer(tmp_path, [curves], max_steps=6).fit(TinyDetector())
    assert [step for step, _ in curves.history.series["grpo/kl"]] == [2, 4, 6]


def test_accumulated_batches_are_one_step(tmp_path):
    curves = Curves()
    trainer(tmp_path, [curves], max_steps=2, accumulate_grad_batches=2).fit(TinyDetector())
    assert [step for step, _ in curves.history.series["grpo/kl"]] == [1, 2]


@pytest.mark.parametrize(("steps", "drawn"), [(6, [3, 6]), (7, [3, 6, 7])])
def test_they_are_drawn_at_validations_and_at_an_end_that_is_none(tmp_path, monkeypatch, steps, drawn):
    lengths = []

    def draw(series, switches):
        lengths.append(len(series["grpo/kl"]))
        return Image.new("RGB", (9, 9))

    monkeypatch.setattr("callbacks.curves.draw_curves", draw)
    trainer(tmp_path, [Curves()], **FIT | {"max_steps": steps}).fit(TinyDetector([*REWARDS, 0.7]))
    assert lengths == drawn
    assert len(json.loads((tmp_path / "curves.json").read_text())["series"]["grpo/kl"]) == steps


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_resume_restores_the_curves(tmp_path, stop):
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=stop, save_top_k=-1)
    uninterrupted, resumed = Curves(), Curves()
    first = trainer(tmp_path, [RuleRefinement(), uninterrupted, saving], enable_checkpointing=True, **FIT)
    first.fit(TinyDetector(REWARDS))
    second = trainer(tmp_path, [RuleRefinement(), resumed], **FIT)
    second.fit(TinyDetector(REWARDS), ckpt_path=tmp_path / f"step={stop}.ckpt")
    assert resumed.history.series.keys() == uninterrupted.history.series.keys()
    assert resumed.history.series["reward/total"] == uninterrupted.history.series["reward/total"]
    assert resumed.switches == uninterrupted.switches


def test_a_partial_sanity_check_is_not_recorded(tmp_path):
    curves = Curves()
    trainer(tmp_path, [curves], **(FIT | {"num_sanity_val_steps": 1})).fit(TinyDetector())
    assert [step for step, _ in curves.history.series["val/map"]] == [3, 6]


def test_long_series_are_thinned_evenly():
    history = History(max_points=10)
    for step in range(1, 1001):
        history.add("loss", step, float(step))
    steps = [step for step, _ in history.series["loss"]]
    assert 10 <= len(steps) <= 20
    assert set(np.diff(steps)) == {64}
    copy = History(max_points=10)
    copy.load_state_dict(history.state_dict())
    for both in (history, copy):
        for step in range(1001, 3000):
            both.add("loss", step, float(step))
    assert copy.series == history.series


@pytest.mark.parametrize("setting", [{"every_n_steps": 0}, {"max_points": 0}])
def test_bad_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is 0"):
        Curves(**setting)
