import json

import pytest

from tests.shared_data import SHARED, needs_shared
from vr1.data import OdinwDataModule, OdinwSet
from vr1.data.annotated import AnnotatedSource
from vr1.data.coco import coco_splits
from vr1.data.questions import Questions

FOUR = {"Raccoon": "raccoon", "NorthAmericaMushrooms": "mushrooms", "Packages": "packages", "thermal": "thermal"}


def real_sets():
    names = {"train": "instances_train.json", "val": "instances_valid.json", "test": "instances_test.json"}
    return {name: OdinwSet(folder=folder, images="images", **names) for name, folder in FOUR.items()}


@needs_shared
def test_four_real_sets():
    data = OdinwDataModule(SHARED, real_sets())
    source = data.build("test")
    expected = [
        (name, record.image_id, record.categories, record.boxes_xyxy.tolist())
        for name, folder in FOUR.items()
        for record in AnnotatedSource(*coco_splits(SHARED / folder)["valid"], questions=Questions(task="grounding"))
    ]
    records = [(item.set_name, item.image_id, item.categories, item.boxes_xyxy.tolist()) for item in source]
    assert records == expected
    assert len(OdinwDataModule(SHARED, real_sets(), report="test").build("test")) < len(source)
    assert source.pixel_counts[source.largest] == max(source.pixel_counts)


@pytest.fixture
def layout(tmp_path, picture):
    """One set in the layout of the benchmark, with a nameless category."""
    picture("Chess/valid/a.jpg", (40, 30))
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}],
        "categories": [{"id": 1, "name": "  "}, {"id": 2, "name": "king"}, {"id": 3, "name": "queen"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]},
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [1, 1, 5, 5]},
        ],
    }
    (tmp_path / "Chess/valid/annotations_without_background.json").write_text(json.dumps(document))
    return tmp_path


def test_the_benchmarks_layout(layout, caplog):
    sets = {"Chess": OdinwSet(folder="Chess", categories=["king", "queen"])}
    [record] = OdinwDataModule(layout, sets).build("val")
    assert (record.categories, record.labels, record.set_name) == (("queen",), ("queen",), "Chess")
    assert "1 categories without a name are left out with their 1 objects" in caplog.text
    [record] = OdinwDataModule(layout, sets, task="detection").build("predict")
    assert record.categories == ("king", "queen")
    categories = [record.categories for record in OdinwDataModule(layout, sets, negatives=0.5).build("test")]
    assert categories == [("king",), ("queen",)]


def test_sets_that_are_missing(layout):
    sets = {"Chess": OdinwSet(folder="Chess"), "Gone": OdinwSet(folder="Gone/large")}
    with pytest.raises(ValueError, match=r"Gone not found, such as Gone/large; download .*, or set missing"):
        OdinwDataModule(layout, sets).build("test")
    assert len(OdinwDataModule(layout, sets, missing="skip").build("test")) == 1
    with pytest.raises(ValueError, match="has none of the sets Gone; check the path"):
        OdinwDataModule(layout, {"Gone": sets["Gone"]}, missing="skip").build("test")
    with pytest.raises(ValueError, match=r"train/annotations_without_background\.json: no such file"):
        OdinwDataModule(layout, {"Chess": sets["Chess"]}).build("train")


@pytest.mark.parametrize(("setting", "value"), [("report", "train"), ("missing", "ignore")])
def test_wrong_settings(tmp_path, setting, value):
    with pytest.raises(ValueError, match=f"{setting}='{value}' must be"):
        OdinwDataModule(tmp_path, {}, **{setting: value})
