"""Completions: tables of answers for Weights & Biases."""

import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger

from callbacks import Completions
from callbacks.completions import wandb_boxes
from tests.callbacks.tiny import TinyDetector
from tests.trainers import trainer
from vr1.detections import read_detections
from vr1.drawing.boxes import example_prediction
from vr1.families import Qwen25VL
from vr1.modules.state import TrainingState
from vr1.types import ScoredGroups

ANSWER = '```json\n[{"bbox_2d": [10, 10, 40, 40], "label": "red circle"}]\n```'


class WithGroups(TinyDetector):
    """Has sampled and rewarded two groups of three answers."""

    def __init__(self):
        super().__init__()
        record = example_prediction().record
        self.training_state = TrainingState()
        self.training_state.scored_groups = ScoredGroups(
            records=[record] * 2,
            instructions=["find it"] * 2,
            input_sizes=[record.image_size] * 2,
            texts=[[ANSWER, "nothing", ANSWER]] * 2,
            detections=[
                read_detections(text, Qwen25VL(), record.image_size, record.image_size)
                for text in (ANSWER, "nothing", ANSWER) * 2
            ],
            rewards=torch.arange(6.0).reshape(2, 3),
            terms={"recall": torch.ones(2, 3)},
            advantages=torch.arange(6.0).reshape(2, 3) - 2,
            item_advantages=[np.full(count, -1.0) for count in [1, 0, 1] * 2],
            box_advantages=[np.full(count, float(row)) for row, count in enumerate([1, 0, 1] * 2)],
        )


class Recording(WandbLogger):
    """Collects tables instead of logging them."""

    def __init__(self):
        super().__init__(offline=True)
        self.tables = []

    @property
    def experiment(self):
        return self

    def log_table(self, key, columns=None, data=None, dataframe=None, step=None):
        self.tables.append((key, columns, data, step))

    def log_metrics(self, metrics, step=None):
        pass

    def finalize(self, status):
        pass


@pytest.fixture
def logger(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Recording()


def test_sampled_groups(logger, tmp_path):
    callback = Completions(every_n_steps=2, num_prompts=1, num_validation=0)
    trainer(tmp_path, [callback], logger=logger, max_steps=4).fit(WithGroups())
    assert [(key, step) for key, _, _, step in logger.tables] == [("completions/train", 2), ("completions/train", 4)]
    _, columns, rows, _ = logger.tables[0]
    assert columns == ["image", "prompt", "answer", "reward", "recall", "advantage"]
    assert [row[1:] for row in rows] == [
        ["find it", ANSWER, 0.0, 1.0, -2.0],
        ["find it", "nothing", 1.0, 1.0, -1.0],
        ["find it", ANSWER, 2.0, 1.0, 0.0],
    ]
    assert isinstance(rows[0][0], wandb.Image)
    for row, advantage in ((rows[0], 0.0), (rows[2], 2.0)):
        boxes = row[0]._boxes["predictions"]._val
        assert [box["scores"] for box in boxes] == [
            {"score": 0.99, "box advantage": advantage, "label advantage": -1.0}
        ]


def test_every_answer_of_several_groups_has_its_own_boxes(logger, tmp_path):
    callback = Completions(every_n_steps=2, num_prompts=2, num_validation=0)
    trainer(tmp_path, [callback], logger=logger, max_steps=2).fit(WithGroups())
    [(_, _, rows, _)] = logger.tables
    found = [row[0]._boxes.get("predictions") for row in rows]
    advantages = [[box["scores"]["box advantage"] for box in boxes._val] if boxes else [] for boxes in found]
    assert advantages == [[0.0], [], [2.0], [3.0], [], [5.0]]


def test_an_accumulated_step_that_is_resumed_is_not_shown_twice(logger, tmp_path):
    settings = {"enable_checkpointing": True, "accumulate_grad_batches": 2, "logger": logger}
    saving = ModelCheckpoint(tmp_path, filename="two", every_n_train_steps=2)
    trainer(tmp_path, [saving], max_steps=2, **settings).fit(WithGroups())
    trainer(tmp_path, [Completions(every_n_steps=2)], max_steps=4, **settings).fit(
        WithGroups(), ckpt_path=tmp_path / "two.ckpt"
    )
    assert [step for _, _, _, step in logger.tables] == [4]


def test_a_step_that_returns_no_predictions_is_an_error(logger, tmp_path):
    class Silent(WithGroups):
        def validation_step(self, batch, batch_idx):
            return None

    settings = {"limit_val_batches": 1.0, "val_check_interval": 2}
    with pytest.raises(TypeError, match=r"Completions requires .* the step returned NoneType"):
        trainer(tmp_path, [Completions()], logger=logger, max_steps=2, **settings).fit(Silent())


def test_validations(logger, tmp_path):
    callback = Completions(every_n_steps=0, num_validation=3)
    settings = {"limit_val_batches": 1.0, "val_check_interval": 2}
    trainer(tmp_path, [callback], logger=logger, max_steps=2, **settings).fit(WithGroups())
    [(key, columns, rows, step)] = logger.tables
    assert (key, step, len(rows)) == ("completions/val", 2, 3)
    assert columns[3:] == ["reward", "dual_format", "recall", "precision", "advantage"]
    assert rows[0][-1] is None


def test_without_weights_and_biases_it_does_nothing(tmp_path):
    trainer(tmp_path, [Completions(every_n_steps=1)], max_steps=2).fit(WithGroups())


def test_boxes_are_what_wandb_takes():
    prediction = example_prediction()
    overlay = wandb_boxes(prediction.record, prediction.detections)
    wandb.Image(prediction.record.image, boxes=overlay)
    first = overlay["predictions"]["box_data"][0]
    assert list(first["position"].values()) == prediction.detections.boxes_xyxy[0].tolist()
    assert overlay["predictions"]["class_labels"][first["class_id"]] == prediction.detections.labels[0]
    assert first["scores"] == {"score": 0.99}
    advantages = {"advantage": np.array([0.5, -1.0, 2.0])}
    overlay = wandb_boxes(prediction.record, prediction.detections, advantages)
    wandb.Image(prediction.record.image, boxes=overlay)
    assert [box["scores"]["advantage"] for box in overlay["predictions"]["box_data"]] == [0.5, -1.0, 2.0]
    assert "scores" not in overlay["ground_truth"]["box_data"][0]
    empty = example_prediction(empty=True)
    assert list(wandb_boxes(empty.record, empty.detections)) == ["ground_truth"]
    assert np.isfinite(list(first["position"].values())).all()


@pytest.mark.parametrize(
    ("setting", "least"), [({"every_n_steps": -1}, 0), ({"num_prompts": 0}, 1), ({"num_validation": -2}, 0)]
)
def test_bad_settings(setting, least):
    [(name, value)] = setting.items()
    with pytest.raises(ValueError, match=f"{name} is {value}: give at least {least}"):
        Completions(**setting)
