"""COCO and ODINW by their configurations: the questions of Griffon-G, and its answers read in 0..1 of the square."""

import json
import shutil

import pytest

from tests.commands.test_evaluate import coco, evaluate
from tests.griffon.models import small_model, write_released

__all__ = ["coco"]
TRUE = ["--model.sampler", "tests.griffon.models.TrueBoxes"]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return write_released(tmp_path_factory.mktemp("released"), *small_model())


def answers(folder):
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def test_true_boxes_in_its_form_are_all_found_in_coco(released, coco, tmp_path):
    """Written in 0..1 with three decimals, and read back: half a thousandth of an image is no overlap lost."""
    folder = evaluate(tmp_path, "coco.yaml", released, "--data.root", coco, *TRUE)
    figures = json.loads((folder / "metrics.json").read_text())["average"]
    assert figures["records"] == 5
    assert figures["map"] == pytest.approx(1.0, abs=1e-6)
    for row in answers(folder):
        assert row["instruction"].startswith(
            "Examine the image for any objects from the category set. Report the coordinates of each detected object. "
            "The category set includes "
        )
        assert "-[0." in row["completion"]
    # The boxes that are written for COCO's own tools are in pixels of the image as stored.
    truth = json.loads((folder / "ground_truth.json").read_text())
    sizes = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
    assert len({*sizes.values()}) > 1, "images of several shapes"
    found = sorted(json.loads((folder / "results.json").read_text()), key=place)
    for ours, theirs in zip(found, sorted(truth["annotations"], key=place), strict=True):
        width, height = sizes[ours["image_id"]]
        for value, true, side in zip(ours["bbox"], theirs["bbox"], (width, height) * 2, strict=True):
            # Width and height are a difference of two rounded numbers.
            assert abs(value - true) <= 0.001 * side + 1e-3


def place(box):
    return box["image_id"], box["category_id"], [round(value) for value in box["bbox"]]


def test_odinw_asks_for_one_category_at_a_time(released, coco, tmp_path):
    root = tmp_path / "odinw" / "Shapes" / "valid"
    shutil.copytree(coco / "val2017", root)
    shutil.copy(coco / "annotations/instances_val2017.json", root / "annotations_without_background.json")
    names = [
        one["name"] for one in json.loads((root / "annotations_without_background.json").read_text())["categories"]
    ]
    sets = json.dumps({"Shapes": {"folder": "Shapes", "categories": names}})
    folder = evaluate(tmp_path, "odinw13.yaml", released, "--data.root", root.parents[1], "--data.sets", sets, *TRUE)
    assert json.loads((folder / "metrics.json").read_text())["average"]["map"] == pytest.approx(1.0, abs=1e-6)
    asked = {row["instruction"] for row in answers(folder)}
    assert asked <= {f"Locate the exact position of {name} in the picture, if you can." for name in names}
    assert len(asked) > 1


def test_the_untrained_model_answers_too(released, coco, tmp_path):
    folder = evaluate(tmp_path, "coco.yaml", released, "--data.root", coco)
    assert len(answers(folder)) == 5
    assert json.loads((folder / "metrics.json").read_text())["average"]["map"] == 0.0
