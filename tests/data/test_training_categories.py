"""Evaluation questions name the categories of the training, not those that their own ground truth happens to have."""

import json

import pytest
import yaml

from tests.data.test_voc import xml
from vr1.data import CocoDataModule, OdinwDataModule, OdinwSet, VocDataModule, YoloDataModule

# By split, the category of each image.
LABELS = {"train": ["dog", "cat", "fox"], "valid": ["cat"], "test": ["cow", "fox"]}
EXPECTED = {"train": ("dog", "cat", "fox"), "val": ("dog", "cat", "fox"), "test": ("dog", "cat", "fox", "cow")}
NAMES = ["dog", "never", "cat", "fox", "cow"]
BOX = [10, 20, 30, 40]


def write_coco(root, picture, file, split, names):
    """The file declares ``names``."""
    images, annotations = [], []
    for number, label in enumerate(LABELS[split]):
        picture(file.rpartition("/")[0] + f"/{split}{number}.png" if "/" in file else f"images/{split}{number}.png")
        images.append({"id": number, "file_name": f"{split}{number}.png", "width": 100, "height": 80})
        item = {"id": number + 1, "image_id": number, "category_id": names.index(label), "bbox": BOX}
        annotations.append(item)
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def coco(root, picture):
    for split in LABELS:
        write_coco(root, picture, f"{split}.json", split, NAMES)
    return CocoDataModule(root)


def coco_with_own_lists(root, picture):
    for split, labels in LABELS.items():
        write_coco(root, picture, f"{split}.json", split, sorted(labels) if split != "train" else NAMES)
    return CocoDataModule(root)


def yolo(root, picture):
    for split, labels in LABELS.items():
        for number, label in enumerate(labels):
            picture(f"{split}/images/{number}.png")
            path = root / split / "labels" / f"{number}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{NAMES.index(label)} 0.5 0.5 0.5 0.5")
    paths = {"train": "train/images", "val": "valid/images", "test": "test/images"}
    (root / "data.yaml").write_text(yaml.safe_dump({"names": NAMES, **paths}))
    return YoloDataModule(root)


def voc(root, picture):
    for split, labels in LABELS.items():
        for number, label in enumerate(labels):
            picture(f"{split}/{number}.jpg")
            (root / split / f"{number}.xml").write_text(xml(f"{number}.jpg", (100, 80), (label, BOX, 0)))
    return VocDataModule(root)


def odinw(root, picture):
    for split in LABELS:
        write_coco(root, picture, f"Farm/{split}/annotations_without_background.json", split, NAMES)
    return OdinwDataModule(root, {"Farm": OdinwSet(folder="Farm")}, report="test", task="detection")


@pytest.mark.parametrize("trained", [True, False], ids=["after training", "alone"])
@pytest.mark.parametrize("layout", [coco, coco_with_own_lists, yolo, voc, odinw])
def test_evaluation_asks_for_what_was_trained(tmp_path, picture, layout, trained):
    data = layout(tmp_path, picture)
    for split, expected in EXPECTED.items():
        if split == "train" and not trained:
            continue
        source = data.build(split)
        assert {record.categories for record in source} == {expected}
        # All of the truth is there, in the spelling of the question.
        labels = [label for record in source for label in record.labels]
        assert labels == LABELS[{"val": "valid"}.get(split, split)]
    if trained:
        notes = [note for report in data.build("test").reports() for note in report.notes]
        assert "categories that no training question names, named here: cow" in notes


def test_categories_that_are_set_count(tmp_path, picture):
    coco(tmp_path, picture)
    data = CocoDataModule(tmp_path, categories=["fox", "cat"])
    assert data.build("val")[0].categories == ("fox", "cat")


def test_without_a_training_file(tmp_path, picture, caplog):
    data = coco(tmp_path, picture)
    (tmp_path / "train.json").unlink()
    assert data.build("val")[0].categories == ("cat",)
    (tmp_path / "train.json").write_text("{")
    assert CocoDataModule(tmp_path).build("val")[0].categories == ("cat",)
    assert "the categories are not those of the training, which cannot be read" in caplog.text
