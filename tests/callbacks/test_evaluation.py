"""The files of a test run."""

import json
from dataclasses import replace

import pytest
from pycocotools.coco import COCO

from callbacks import Evaluation
from tests.callbacks.tiny import TinyDetector, trainer


class Sets(TinyDetector):
    """Test on records of two sets."""

    def finding(self, index):
        finding = super().finding(index)
        return replace(finding, record=replace(finding.record, set_name="shapes" if index % 2 else "others"))


def test_files_of_one_set(tmp_path, capsys):
    folder = tmp_path / "my evaluation"
    trainer(tmp_path, [Evaluation(folder)]).test(TinyDetector(), verbose=False)
    names = ["answers.jsonl", "ground_truth.json", "metrics.json", "per_class.csv", "per_set.csv", "results.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
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


def test_sets_are_measured_apart_and_logged(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, name="", version="run")
    trainer(tmp_path, [Evaluation()], logger=logger).test(Sets(), verbose=False)
    folder = tmp_path / "run" / "evaluation"
    figures = json.loads((folder / "metrics.json").read_text())
    assert {name: part["records"] for name, part in figures["sets"].items()} == {"others": 3, "shapes": 3}
    mean = (figures["sets"]["others"]["map"] + figures["sets"]["shapes"]["map"]) / 2
    assert figures["average"]["map"] == pytest.approx(mean)
    assert (folder / "shapes" / "results.json").is_file()
    assert "sets/average/map" in (tmp_path / "run" / "metrics.csv").read_text()


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
    trainer(tmp_path, [two], devices=2, strategy="ddp_spawn").test(TinyDetector(images=5), verbose=False)
    assert not list((tmp_path / "two").glob("*rank*"))
    # The sampler repeats a record to fill the last batch; it counts once.
    assert len((tmp_path / "two" / "answers.jsonl").read_text().splitlines()) == 6
    for name in ("metrics.json", "results.json", "ground_truth.json"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()


@pytest.mark.parametrize("text", [None, "[]", "no json", '{"categories": [{"id": 1}]}'])
def test_annotations_that_are_none(tmp_path, text):
    if text is not None:
        (tmp_path / "instances.json").write_text(text)
    with pytest.raises(ValueError, match=r"annotations is '.*instances\.json', whose categories cannot be read"):
        Evaluation(annotations=tmp_path / "instances.json")


def test_an_unwritable_folder_is_refused_before_testing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output_dir is '.*file/out', which cannot be written to"):
        trainer(tmp_path, [Evaluation(tmp_path / "file" / "out")]).test(TinyDetector(), verbose=False)


def test_other_outputs_are_named(tmp_path):
    class Other(TinyDetector):
        def test_step(self, batch, batch_idx):
            return "boxes"

    with pytest.raises(TypeError, match="the step returned str"):
        trainer(tmp_path, [Evaluation(tmp_path / "out")]).test(Other(), verbose=False)
