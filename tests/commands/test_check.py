"""`python -m vr1 check` on small folders, sound and faulty, against what was put into them."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.command import CONFIGS, run
from vr1.commands.check.pictures import as_seen
from vr1.commands.check.summary import bins
from vr1.data import SceneSource, SceneStyle
from vr1.families import CustomFamily, ItemGrammar, Qwen25VL, Wording
from vr1.prompts import PromptEncoder


@pytest.fixture
def folder(tmp_path):
    """Scenes as one COCO json for each of two splits, before it is written."""
    splits = {}
    for split, count in (("train", 6), ("valid", 3)):
        (tmp_path / "images").mkdir(exist_ok=True)
        document = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "shape"}]}
        for record in SceneSource(count, "val" if split == "valid" else split, style=SceneStyle(absent=0.0)):
            name = f"{split}_{record.image_id}.png"
            record.image.save(tmp_path / "images" / name)
            width, height = record.image_size
            document["images"].append({"id": record.image_id, "file_name": name, "width": width, "height": height})
            for x1, y1, x2, y2 in record.boxes_xyxy.tolist():
                item = {"id": len(document["annotations"]) + 1, "image_id": record.image_id, "category_id": 1}
                document["annotations"].append(item | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
        splits[split] = document
    return tmp_path, splits


def check(folder, model, *words):
    root, splits = folder
    for split, document in splits.items():
        (root / f"instances_{split}.json").write_text(json.dumps(document))
    words = ["--data.root", root, "--model", model, "--data.num_workers", 0, "--out", root / "out", *words]
    return run(root, "check", "--config", CONFIGS / "raccoon.yaml", *words)


def test_a_sound_folder(folder, tiny_model, capsys):
    assert check(folder, tiny_model) == 0
    root, splits = folder
    text = (root / "out" / "check.txt").read_text()
    assert text.strip() in capsys.readouterr().out
    for name, split in (("train", "train"), ("val", "valid")):
        images, objects = len(splits[split]["images"]), len(splits[split]["annotations"])
        assert f"{name}: {images} records, {objects} objects (0 records without one), 0 crowd regions" in text
    assert text.count("anomalies: none") == text.count("categories: shape")
    for picture in ("histograms.png", "records_train.png", "records_val.png"):
        assert min(Image.open(root / "out" / picture).size) > 100


def test_every_anomaly_is_told_with_its_file(folder, tiny_model, capsys):
    root, splits = folder
    boxes = splits["train"]["annotations"]
    for box in boxes[:7]:
        box["bbox"] = [*box["bbox"][:2], 0, 0]
    (root / "images" / "train_6.png").write_bytes((root / "images" / "train_6.png").read_bytes()[:300])
    words = ["--data.bad_records", "skip", "--model.max_prompt_tokens", 20]
    assert check(folder, tiny_model, *words) == 1
    text = (root / "out" / "check.txt").read_text()
    assert "box of zero size: 7" in text
    assert sum("instances_train.json: annotation" in line for line in text.splitlines()) == 7
    assert "train_6.png" in text
    assert "prompt longer than max_prompt_tokens" in text
    # Without leave to skip, all of them are told at once and the other split is still read.
    assert check(folder, tiny_model) == 1
    out = capsys.readouterr().out
    assert "train cannot be opened" in out
    assert "more)" not in out
    assert "val: 3 records" in out


def test_what_is_missing_is_no_fault_and_what_is_damaged_is_one(folder, tiny_model, capsys):
    root, splits = folder
    del splits["valid"]
    assert check(folder, tiny_model) == 0
    assert "val cannot be opened" in capsys.readouterr().out
    (root / "instances_valid.json").write_text("{")
    assert check(folder, tiny_model) == 1
    assert "instances_valid.json: not JSON" in capsys.readouterr().out


def test_an_image_that_the_model_cannot_take(folder, tiny_model):
    root, splits = folder
    image = splits["train"]["images"][0]
    Image.new("RGB", (1200, 4)).save(root / "images" / image["file_name"])
    image["width"], image["height"] = 1200, 4
    boxes = splits["train"]["annotations"]
    splits["train"]["annotations"] = [item for item in boxes if item["image_id"] != image["id"]]
    assert check(folder, tiny_model) == 1
    text = (root / "out" / "check.txt").read_text()
    assert "record of which the model's processor makes no prompt: 1" in text
    assert "refuses the image of 1200 x 4 pixels" in text


def test_nothing_that_can_be_read(tmp_path, tiny_model, capsys):
    words = ["--config", CONFIGS / "raccoon.yaml", "--data.root", tmp_path, "--model", tiny_model]
    assert run(tmp_path, "check", *words) == 2
    assert "vr1 check: error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "family",
    [Qwen25VL(), CustomFamily(frame="image", wording=Wording(one="Find {categories}."), grammar=ItemGrammar())],
    ids=["input", "image"],
)
def test_records_are_shown_at_the_models_size(source, records, family):
    processor = source.processor()
    processor.image_processor.size = type(processor.image_processor.size)(shortest_edge=3136, longest_edge=28 * 28 * 9)
    encoder = PromptEncoder(processor, family, max_prompt_tokens=1024)
    for record in records:
        prediction = as_seen(record, encoder)
        assert prediction.record.image.size != record.image.size
        scale = np.tile(np.array(prediction.record.image.size) / record.image.size, 2)
        np.testing.assert_allclose(prediction.record.boxes_xyxy, record.boxes_xyxy * scale)
        # Written as whole numbers of the frame, so within half a unit of it.
        np.testing.assert_allclose(prediction.detections.boxes_xyxy, prediction.record.boxes_xyxy, atol=0.51)


def test_bins_hold_every_value():
    values = [0, 0, 3, 3.5, 31.9, 40, 1e6]
    found = dict(bins(values, (0, 8, 32, 64)))
    assert found == {"0-7": 4, "8-31": 1, "32-63": 1, "64+": 1}
    assert bins([], (0, 1)) == [("0", 0)]
