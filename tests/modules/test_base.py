"""Evaluation: logged metrics against an independent computation from the predictions."""

import pickle
from dataclasses import replace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torchmetrics.detection import MeanAveragePrecision

from vr1.data import SceneDataModule, SceneSource, SceneStyle
from vr1.data.mixture import SetsSource
from vr1.metrics import CocoMetrics
from vr1.metrics.answer_file import ScoredCompletion
from vr1.modules.evaluation import targets_of
from vr1.modules.grpo import GRPOModule
from vr1.modules.sft import SFTModule
from vr1.rollout import Sampling
from vr1.types import Prediction, as_boxes


class Recorder(pl.Callback):
    def __init__(self):
        self.predictions = []

    def on_validation_batch_end(self, trainer, module, outputs, *_):
        self.predictions += outputs

    def on_test_batch_end(self, trainer, module, outputs, *_):
        self.predictions += outputs


def trainer_of(tmp_path, *callbacks):
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
    )


class GoodAnswers(GRPOModule):
    """Answers with the true boxes, some of them shifted and sure of it; one answer of a batch is not readable."""

    def answer(self, prompts):
        answers = []
        for row, (record, size) in enumerate(zip(prompts.records, prompts.input_sizes, strict=True)):
            shift = 3.0 * (record.image_id % 3)
            boxes = self.family.from_image(record.boxes_xyxy, record.image_size, size)
            limit = np.tile(np.array(size, float), 2)
            text = self.family.write(np.clip(boxes + shift, 0, limit - 1), list(record.labels))
            scores = tuple(0.2 + 0.05 * shift + 0.1 * number for number in range(len(boxes)))
            readable = ScoredCompletion(completion=text, scores=scores)
            answers.append(ScoredCompletion(completion="I cannot see that.") if row == 2 else readable)
        return answers


@pytest.fixture(params=["validate", "test"])
def evaluated(request, source, tmp_path):
    """Metrics and predictions of a model that answers well."""
    module = GoodAnswers(policy=source)
    recorder = Recorder()
    data = SceneDataModule(
        SceneStyle(num_objects=(1, 4), absent=0.2), val_scenes=11, test_scenes=11, eval_batch_size=4, num_workers=0
    )
    [metrics] = getattr(trainer_of(tmp_path, recorder), request.param)(module, data, verbose=False)
    stage = "val" if request.param == "validate" else "test"
    return {name.removeprefix(f"{stage}/"): value for name, value in metrics.items()}, recorder.predictions


def test_every_record_is_evaluated_once(evaluated):
    _, predictions = evaluated
    assert [prediction.record.image_id for prediction in predictions] == list(range(1, 12))


@pytest.mark.parametrize("ranked", [False, True], ids=["constant scores", "scores of the predictions"])
def test_precision_is_that_of_torchmetrics_on_the_predictions(evaluated, ranked):
    metrics, predictions = evaluated
    names = sorted({name for prediction in predictions for name in prediction.record.categories})
    other = MeanAveragePrecision(backend="pycocotools")
    for prediction in predictions:
        detections, record = prediction.detections, prediction.record
        other.update(
            [
                {
                    "boxes": torch.from_numpy(detections.boxes_xyxy),
                    "scores": torch.from_numpy(detections.scores) if ranked else torch.full((len(detections),), 0.99),
                    "labels": torch.tensor([names.index(label) for label in detections.labels], dtype=torch.int64),
                }
            ],
            [
                {
                    "boxes": torch.from_numpy(record.boxes_xyxy),
                    "labels": torch.tensor([names.index(label) for label in record.labels], dtype=torch.int64),
                }
            ],
        )
    expected = other.compute()
    assert 0.1 < metrics["map"] < 0.9
    assert metrics["map_ranked"] < metrics["map"] - 0.005, "the shifted boxes have the higher scores"
    for name in ("map", "map_50", "map_75"):
        assert metrics[f"{name}_ranked" if ranked else name] == pytest.approx(float(expected[name]), abs=1e-5), name
    assert metrics["ar_100"] == pytest.approx(float(expected["mar_100"]), abs=1e-5)


def test_rewards_and_answer_statistics_are_means_over_the_predictions(evaluated):
    metrics, predictions = evaluated
    for name in predictions[0].rewards:
        mean = np.mean([prediction.rewards[name] for prediction in predictions])
        # Batches of four, four and three: a mean of their means would differ.
        assert metrics["reward" if name == "total" else f"reward_{name}"] == pytest.approx(mean, abs=1e-5)
    assert metrics["valid_rate"] == pytest.approx(np.mean([prediction.detections.valid for prediction in predictions]))
    assert metrics["boxes_per_image"] == pytest.approx(np.mean([len(item.detections) for item in predictions]))
    overlaps = np.concatenate([prediction.match.overlap for prediction in predictions])
    assert metrics["overlap"] == pytest.approx(overlaps.mean(), abs=1e-5)


def test_a_second_evaluation_starts_from_zero(source, tmp_path):
    module = GoodAnswers(policy=source)
    data = SceneDataModule(SceneStyle(), val_scenes=5, eval_batch_size=4, num_workers=0)
    trainer = trainer_of(tmp_path)
    first, second = (trainer.validate(module, data, verbose=False) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("way", ["validate", "test"])
def test_nothing_of_an_evaluation_is_left_in_the_next(source, tmp_path, way):
    """The next is of other images, whose figures are those of a module that has seen no others."""

    def evaluate(module, scenes, objects):
        style = SceneStyle(num_objects=objects, absent=0.0)
        data = SceneDataModule(style, val_scenes=scenes, test_scenes=scenes, eval_batch_size=4, num_workers=0)
        [figures] = getattr(trainer_of(tmp_path), way)(module, data, verbose=False)
        return figures

    module = GoodAnswers(policy=source)
    before = evaluate(module, 7, (1, 1))
    after, alone = (evaluate(one, 4, (3, 4)) for one in (module, GoodAnswers(policy=source)))
    assert after == alone
    stage = "val" if way == "validate" else "test"
    for name in ("map", "reward", "reward_recall", "boxes_per_image", "overlap", "valid_rate"):
        assert before[f"{stage}/{name}"] != pytest.approx(after[f"{stage}/{name}"], rel=1e-3), name


def test_a_real_model_predicts_predictions(source, tmp_path):
    module = GRPOModule(policy=source, evaluation=Sampling(group_size=1, temperature=0.0, max_new_tokens=5))
    data = SceneDataModule(SceneStyle(), test_scenes=5, eval_batch_size=4, num_workers=0)
    batches = trainer_of(tmp_path).predict(module, data)
    assert [len(batch) for batch in batches] == [4, 1]
    first, alone = batches[0][0], batches[1][0]
    assert isinstance(first, Prediction)
    assert first.record.categories[0] in first.instruction
    assert set(alone.rewards) == {"dual_format", "recall", "precision", "total"}


def test_predictions_do_not_depend_on_the_batch(source, tmp_path):
    texts = []
    for size in (1, 5):
        module = GRPOModule(policy=source, evaluation=Sampling(group_size=1, temperature=0.0, max_new_tokens=5))
        data = SceneDataModule(SceneStyle(), test_scenes=5, eval_batch_size=size, num_workers=0)
        batches = trainer_of(tmp_path).predict(module, data)
        texts.append([prediction.completion for batch in batches for prediction in batch])
    assert texts[0] == texts[1]


def test_crowd_regions_are_no_targets(encoder, records):
    record = replace(
        records[0],
        boxes_xyxy=as_boxes([[0, 0, 9, 9], [1, 1, 50, 50]]),
        labels=("a", "b"),
        areas=np.ones(2),
        crowd=np.array([False, True]),
    )
    [target] = targets_of(encoder([record]))
    assert (target.boxes_xyxy.tolist(), target.labels) == ([[0, 0, 9, 9]], ("a",))


class TwoSets(SceneDataModule):
    """Scenes as records of two sets, the second of which is twice as large."""

    def build(self, split):
        parts = {"one": SceneSource(3, "val", style=self.style), "two": SceneSource(6, "test", style=self.style)}
        return SetsSource(parts)


def test_several_sets_are_logged_each_and_by_their_mean(source, tmp_path):
    module = GoodAnswers(policy=source)
    data = TwoSets(SceneStyle(num_objects=(1, 4)), eval_batch_size=4, num_workers=0)
    recorder = Recorder()
    [metrics] = trainer_of(tmp_path, recorder).validate(module, data, verbose=False)
    parts = {}
    for name in ("one", "two"):
        alone = CocoMetrics()
        of_set = [prediction for prediction in recorder.predictions if prediction.record.set_name == name]
        alone.update([prediction.detections for prediction in of_set], [prediction.record for prediction in of_set])
        parts[name] = alone.compute()
        assert metrics[f"val/{name}/map_ranked"] == pytest.approx(float(parts[name]["map"]))
        assert f"val/{name}/ar_1" not in metrics
    assert len(of_set) == 6
    for name, part in (("map_ranked", None), ("map", "val")):
        expected = [float(parts[one]["map"]) if part is None else metrics[f"val/{one}/map"] for one in ("one", "two")]
        assert expected[0] != expected[1]
        assert metrics[f"val/{name}"] == pytest.approx(sum(expected) / 2)


def optimizer_settings(module, *arguments):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(module, "model", fail_untyped=False)
    chosen = parser.parse_args(list(arguments)).model.optimizer
    return chosen.class_path, chosen.init_args.lr, chosen.init_args.weight_decay


@pytest.mark.parametrize(("module", "rate"), [(GRPOModule, 1e-6), (SFTModule, 2e-6)])
def test_the_default_learning_rate_is_that_of_full_fine_tuning(source, module, rate, recwarn):
    made = module(policy=source)
    made.configure_model()
    [group] = made.configure_optimizers().param_groups
    assert (group["lr"], group["weight_decay"]) == (rate, 0)
    assert optimizer_settings(module) == ("torch.optim.AdamW", rate, 0)
    # A class alone keeps the rate.
    assert optimizer_settings(module, "--model.optimizer=torch.optim.AdamW") == ("torch.optim.AdamW", rate, 0)
    assert optimizer_settings(module, "--model.optimizer=torch.optim.SGD") == ("torch.optim.SGD", rate, 0)
    assert optimizer_settings(module, "--model.optimizer.lr=1e-5") == ("torch.optim.AdamW", 1e-5, 0)
    arguments = ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1"]
    assert optimizer_settings(module, *arguments) == ("torch.optim.SGD", 0.1, 0)
    assert not [warning for warning in recwarn if "learning rate" in str(warning.message)]


@pytest.mark.parametrize(("kind", "rate"), [(GRPOModule, 1e-6), (SFTModule, 2e-6)])
def test_a_module_with_default_settings_can_be_pickled(source, kind, rate):
    """As `ddp_spawn` does to send it to its processes."""
    module = pickle.loads(pickle.dumps(kind(policy=source)))
    assert module.optimizer(torch.nn.Linear(1, 1).parameters()).defaults["lr"] == rate


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_a_learning_rate_that_nobody_set_is_stated(source, optimizer):
    module = GRPOModule(policy=source, optimizer=optimizer)
    module.configure_model()
    with pytest.warns(UserWarning, match=rf"learning rate is 0\.0?01, the default of {optimizer.__name__}: model\.opt"):
        module.configure_optimizers()
