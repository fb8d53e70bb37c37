"""The files of an evaluation, and how an interrupted one resumes."""

import contextlib
import json
import os
from dataclasses import replace

import pytest
from PIL import Image
from pycocotools.coco import COCO

from callbacks import Evaluation
from callbacks.evaluation import BestWorst, quality
from tests.callbacks.tiny import TinyDetector
from tests.processes import two_ranks
from tests.trainers import trainer
from vr1.data import SceneDataModule, SceneStyle
from vr1.drawing.boxes import example_prediction
from vr1.metrics.answer_file import ScoredCompletion
from vr1.modules.grpo import GRPOModule
from vr1.rollout import Sampling


class Sets(TinyDetector):
    """Test on records of two sets."""

    def prediction(self, index):
        prediction = super().prediction(index)
        return replace(prediction, record=replace(prediction.record, set_name="shapes" if index % 2 else "others"))


def test_files_of_one_set(tmp_path, capsys):
    folder = tmp_path / "my evaluation"
    trainer(tmp_path, [Evaluation(folder)]).test(TinyDetector(), verbose=False)
    names = ["answers.jsonl", "evaluation.json", "gallery", "ground_truth.json", "metrics.json", "per_class.csv"]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "per_set.csv", "results.json"]
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["image_id"] for line in lines] == list(range(6))
    assert lines[0]["read"]["labels"] == ["red circle", "blue square", "blue square"]
    assert lines[0]["scores"] == [0.99] * 3
    assert lines[2]["completion"] == "I see some shapes."
    truth = COCO(str(folder / "ground_truth.json"))
    assert len(truth.getImgIds()) == 6
    truth.loadRes(str(folder / "results.json"))
    figures = json.loads((folder / "metrics.json").read_text())
    assert figures["average"]["records"] == 6
    assert 0 < figures["average"]["map_50"] < 1
    assert set(figures["classes"][""]) == {"red circle", "blue square", "green triangle"}


def test_sets_are_measured_separately(tmp_path):
    trainer(tmp_path, [Evaluation()]).test(Sets(), verbose=False)
    folder = tmp_path / "evaluation"
    figures = json.loads((folder / "metrics.json").read_text())
    assert {name: part["records"] for name, part in figures["sets"].items()} == {"others": 3, "shapes": 3}
    mean = (figures["sets"]["others"]["map"] + figures["sets"]["shapes"]["map"]) / 2
    assert figures["average"]["map"] == pytest.approx(mean)
    assert (folder / "shapes" / "results.json").is_file()


def test_validate_writes_and_training_does_not(tmp_path):
    settings = {"max_steps": 1, "limit_val_batches": 1.0, "val_check_interval": 1}
    trainer(tmp_path, [Evaluation(tmp_path / "fit")], **settings).fit(TinyDetector())
    assert not (tmp_path / "fit").exists()
    trainer(tmp_path, [Evaluation(tmp_path / "val")], limit_val_batches=1.0).validate(TinyDetector(), verbose=False)
    assert (tmp_path / "val" / "metrics.json").is_file()


def test_ids_of_the_given_annotations(tmp_path):
    ids = {"green triangle": 11, "blue square": 7, "red circle": 90}
    document = {"categories": [{"id": number, "name": name} for name, number in ids.items()]}
    (tmp_path / "instances.json").write_text(json.dumps(document))
    callback = Evaluation(tmp_path / "out", annotations=tmp_path / "instances.json")
    trainer(tmp_path, [callback]).test(TinyDetector(), verbose=False)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {result["category_id"] for result in results} == {7, 90}


def test_two_processes_write_one_evaluation(tmp_path):
    one, two = Evaluation(tmp_path / "one"), Evaluation(tmp_path / "two")
    trainer(tmp_path, [one]).test(TinyDetector(images=5), verbose=False)
    trainer(tmp_path, [two], **two_ranks()).test(TinyDetector(images=5), verbose=False)
    assert not list((tmp_path / "two").glob("*rank*"))
    # The sampler repeats a record to fill the last batch; it counts once.
    assert len((tmp_path / "two" / "answers.jsonl").read_text().splitlines()) == 6
    for name in ("metrics.json", "results.json", "ground_truth.json"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()


@pytest.mark.parametrize("text", [None, "[]", "no json", '{"categories": [{"id": 1}]}'])
def test_annotations_that_cannot_be_read(tmp_path, text):
    if text is not None:
        (tmp_path / "instances.json").write_text(text)
    with pytest.raises(ValueError, match=r"annotations is '.*instances\.json', whose categories cannot be read"):
        Evaluation(annotations=tmp_path / "instances.json")


def test_an_unwritable_folder_is_refused_before_testing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output_dir is '.*file/out', which cannot be written to"):
        trainer(tmp_path, [Evaluation(tmp_path / "file" / "out")]).test(TinyDetector(), verbose=False)


def test_a_step_that_returns_no_predictions_is_an_error(tmp_path):
    class Other(TinyDetector):
        def test_step(self, batch, batch_idx):
            return "boxes"

    with pytest.raises(TypeError, match="the step returned str"):
        trainer(tmp_path, [Evaluation(tmp_path / "out")]).test(Other(), verbose=False)


def test_the_best_and_the_worst_images_are_drawn(tmp_path):
    trainer(tmp_path, [Evaluation(tmp_path / "out", num_images=2)]).test(TinyDetector(), verbose=False)
    best, worst = (Image.open(tmp_path / f"out/gallery/{name}.png") for name in ("best", "worst"))
    assert best.size == worst.size
    assert best.tobytes() != worst.tobytes()
    trainer(tmp_path, [Evaluation(tmp_path / "none", num_images=0)]).test(TinyDetector(), verbose=False)
    assert not (tmp_path / "none" / "gallery").exists()
    with pytest.raises(ValueError, match="num_images is -1"):
        Evaluation(num_images=-1)


def test_best_and_worst_are_those_of_all_answers(monkeypatch):
    """Compared with sorting all answers, in any order and with repetitions."""
    predictions = [TinyDetector().prediction(index) for index in range(6)]
    ordered = sorted(predictions, key=lambda item: (quality(item), item.record.image_id))
    drawn = []
    monkeypatch.setattr("callbacks.evaluation.draw_tile", lambda prediction, side: drawn.append(prediction))
    for order in (predictions, predictions[::-1], [*predictions, *predictions]):
        best_worst = BestWorst(3)
        for prediction in order:
            best_worst.add([prediction])
        drawn.clear()
        best_worst.tiles(64)
        assert sorted(map(quality, drawn[:3])) == [quality(item) for item in ordered[-3:]]
        assert [quality(item) for item in drawn[3:]] == [quality(item) for item in ordered[:3]]
        assert len({item.record.image_id for item in drawn[:3]}) == 3
    assert quality(example_prediction(empty=True)) == 0


class PowerCutError(Exception):
    pass


class Counting(GRPOModule):
    """Answers two of the true boxes, records which images it is asked about, and fails after some of them."""

    limit = 99

    def answer(self, batch):
        Counting.asked += [record.image_id for record in batch.records]
        if len(Counting.asked) > self.limit:
            raise PowerCutError
        answers = []
        for record, size in zip(batch.records, batch.input_sizes, strict=True):
            boxes = self.family.from_image(record.boxes_xyxy, record.image_size, size)[:2]
            text = self.family.write(boxes, record.labels[:2])
            answers.append(ScoredCompletion(completion=text, scores=(0.5, 0.75)[: len(boxes)]))
        return answers


@pytest.fixture
def evaluated(source, tmp_path):
    """Evaluates the same 9 scenes; returns the images that answers were generated for."""

    def evaluate(folder, limit=99, batch_size=2, **settings):
        module = Counting(policy=source, **settings)
        module.limit, Counting.asked = limit, []
        data = SceneDataModule(SceneStyle(num_objects=(1, 4)), test_scenes=9, eval_batch_size=batch_size, num_workers=0)
        loop = trainer(tmp_path, [Evaluation(tmp_path / folder)])
        with contextlib.suppress(PowerCutError):
            loop.test(module, data, verbose=False)
        return Counting.asked

    return evaluate


FILES = ("answers.jsonl", "metrics.json", "results.json", "ground_truth.json", "per_class.csv")


def same(tmp_path, *folders):
    return all(len({(tmp_path / folder / name).read_bytes() for folder in folders}) == 1 for name in FILES)


def test_an_interrupted_evaluation_resumes(evaluated, tmp_path):
    assert evaluated("full") == list(range(1, 10))
    assert evaluated("cut", limit=4) == [1, 2, 3, 4, 5, 6]
    answers = tmp_path / "cut" / "answers.jsonl"
    assert len(answers.read_text().splitlines()) == 4
    assert not (tmp_path / "cut" / "metrics.json").exists()
    with answers.open("ab") as file:  # as after a kill
        file.write(answers.read_bytes().splitlines()[0][:200])
    assert evaluated("cut") == [5, 6, 7, 8, 9]
    assert same(tmp_path, "full", "cut")


def test_missing_answers_are_generated(evaluated, tmp_path):
    evaluated("full")
    evaluated("cut", limit=4)
    answers = tmp_path / "cut" / "answers.jsonl"
    lines = answers.read_bytes().splitlines(keepends=True)
    answers.write_bytes(lines[0] + lines[3])
    (tmp_path / "cut" / "answers.rank1.jsonl").write_bytes(lines[1])
    assert evaluated("cut", batch_size=4) == [3, 5, 6, 7, 8, 9]
    assert not (tmp_path / "cut" / "answers.rank1.jsonl").exists()
    for name in ("metrics.json", "results.json"):
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "full" / name).read_text()


@pytest.mark.parametrize("change", ["settings", "weights", "finished", "resume off"])
def test_answers_of_something_else_do_not_count(evaluated, tmp_path, source, change):
    all_images = list(range(1, 10))
    assert evaluated("out", limit=99 if change == "finished" else 4)[:4] == [1, 2, 3, 4]
    if change == "settings":
        assert evaluated("out", evaluation=Sampling(group_size=1, temperature=0.0, max_new_tokens=7)) == all_images
    elif change == "weights":
        [file] = (tmp_path / source.path).glob("*.safetensors")
        os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 10**9))
        assert evaluated("out") == all_images
    elif change == "finished":
        assert evaluated("out") == all_images
    else:
        module = Counting(policy=source)
        Counting.asked = []
        data = SceneDataModule(SceneStyle(num_objects=(1, 4)), test_scenes=9, num_workers=0)
        trainer(tmp_path, [Evaluation(tmp_path / "out", resume=False)]).test(module, data, verbose=False)
        assert Counting.asked == all_images
    assert len((tmp_path / "out" / "answers.jsonl").read_text().splitlines()) == 9
