"""Predictions on disk: drawings, JSON lines, contact sheet, file names, boxes with a problem."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from callbacks import PredictionWriter
from callbacks.predictions import box_problems
from tests.callbacks.tiny import TinyDetector
from tests.processes import two_ranks
from tests.trainers import trainer
from vr1.drawing.boxes import MARKED, PALETTE, example_prediction
from vr1.types import as_boxes


class Named(TinyDetector):
    """Predict on records with these origins."""

    def __init__(self, *origins):
        super().__init__(images=len(origins))
        self.origins = origins

    def prediction(self, index):
        prediction = super().prediction(index)
        return replace(prediction, record=replace(prediction.record, origin=self.origins[index]))


def predict(tmp_path, model, writer, **settings):
    trainer(tmp_path, [writer], **settings).predict(model, return_predictions=False)


def rows(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_drawings_rows_and_sheet(tmp_path):
    folder = tmp_path / "my predictions"
    predict(tmp_path, Named("in/a b.jpg", "in/café 猫.png", "in/none.png"), PredictionWriter(folder, tile_size=100))
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["a b.jpg", "café 猫.png", "none.png", "contact_sheet.png", "predictions.jsonl"]
    )
    first, _, third = rows(folder)
    assert first["image"] == "in/a b.jpg"
    assert first["drawing"] == "a b.jpg"
    assert (first["width"], first["height"]) == (112, 84)
    assert first["boxes_xyxy"] == [[11, 9, 42, 41], [66, 19, 99, 50], [80, 60, 108, 80]]
    assert first["labels"] == ["red circle", "blue square", "blue square"]
    assert first["scores"] == [0.99] * 3
    assert first["problems"] == ["", "", ""]
    assert first["valid"] is True
    assert (third["boxes_xyxy"], third["valid"], third["completion"]) == ([], False, "I see some shapes.")
    drawing = Image.open(folder / "café 猫.png")
    assert drawing.size == (112, 84)
    assert drawing.getpixel((11, 30)) == PALETTE[0]
    jpeg = Image.open(folder / "a b.jpg")
    assert jpeg.format == "JPEG"
    assert np.abs(np.subtract(jpeg.getpixel((11, 30)), PALETTE[0])).max() < 40


class Faulty(TinyDetector):
    """Predict a box, a box without area, and a box whose label was not requested."""

    def prediction(self, index):
        prediction = super().prediction(0)
        detections = replace(
            prediction.detections,
            boxes_xyxy=as_boxes([[11, 9, 42, 41], [70, 20, 70, 50], [80, 60, 108, 80]]),
            labels=("Red circle.", "blue square", "a cat"),
        )
        return replace(prediction, detections=detections)


def test_boxes_with_a_problem_are_marked(tmp_path):
    predict(tmp_path, Faulty(images=1), PredictionWriter(tmp_path / "out", tile_size=100))
    [row] = rows(tmp_path / "out")
    assert row["problems"] == ["", "no area", "not requested"]
    drawing = np.asarray(Image.open(tmp_path / "out" / row["drawing"]))
    marked = (drawing == MARKED).all(axis=-1)
    assert marked[15:25, 65:76].any(), "a cross where the box without area is"
    assert marked[60:81, 80].any()
    assert not marked[9:42, 11].any()
    assert (np.asarray(Image.open(tmp_path / "out" / "contact_sheet.png")) == MARKED).all(axis=-1).any()


def test_labels_are_checked_only_against_categories():
    prediction = example_prediction()
    for change in ({"categories": ()}, {"categories": ("the left one",), "referring": True}):
        assert box_problems(replace(prediction, record=replace(prediction.record, **change))) == ["", "", ""]
    assert box_problems(example_prediction(empty=True)) == []


def test_names_are_unique(tmp_path):
    origins = ("x/a.png", "y/a.png", "z/A.png", "set.json#3", "a|b?.png", "contact_sheet.png", "z/../..", "")
    predict(tmp_path, Named(*origins), PredictionWriter(tmp_path / "out", sheet_images=0))
    names = [row["drawing"] for row in rows(tmp_path / "out")]
    assert names == [
        "a.png",
        "a_1.png",
        "A_2.png",
        "set.json#3.png",
        "a_b_.png",
        "contact_sheet_5.png",
        "image.png",
        "image_7.png",
    ]
    assert all((tmp_path / "out" / name).is_file() for name in names)
    assert not (tmp_path / "out" / "contact_sheet.png").exists()


def test_default_folder_and_a_second_run(tmp_path):
    for _ in range(2):
        predict(tmp_path, TinyDetector(), PredictionWriter(tile_size=100))
        assert len(rows(tmp_path / "predictions")) == 6


def test_two_processes_write_one_file(tmp_path):
    writer = PredictionWriter(tmp_path / "out", tile_size=100)
    predict(tmp_path, TinyDetector(images=5), writer, **two_ranks())
    written = rows(tmp_path / "out")
    assert sorted(row["drawing"] for row in written) == [f"shape {index % 2}_{index}.png" for index in (0, 2, 4, 1, 3)]
    assert not list((tmp_path / "out").glob("*rank*"))


def test_unwritable_folder_is_refused_before_predicting(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output_dir is '.*file/out', which cannot be written to"):
        predict(tmp_path, TinyDetector(), PredictionWriter(tmp_path / "file" / "out"))


def test_a_step_that_returns_no_predictions_is_an_error(tmp_path):
    class Other(TinyDetector):
        def predict_step(self, batch, batch_idx):
            return "boxes"

    with pytest.raises(TypeError, match=r"PredictionWriter requires .* the step returned str"):
        predict(tmp_path, Other(), PredictionWriter(tmp_path / "out"))


@pytest.mark.parametrize("setting", [{"sheet_images": -1}, {"tile_size": 0}])
def test_bad_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is"):
        PredictionWriter(**setting)
