"""The folders that annotation tools write, each read through its data module."""

import json

import pytest

from vr1.data import CocoDataModule


@pytest.fixture
def write(tmp_path, picture):
    """Writes one json with ten images; the name of each is a pattern, and so is the place of its file."""

    def _write(path, listed, stored, label="cat"):
        images = [{"id": n, "file_name": listed.format(n), "width": 100, "height": 80} for n in range(10)]
        for number in range(10):
            picture(stored.format(number))
        document = {
            "images": images,
            "categories": [{"id": 0, "name": label}],
            "annotations": [{"id": n, "image_id": n, "category_id": 0, "bbox": [n, 2, 30, 40]} for n in range(10)],
        }
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(json.dumps(document))

    return _write


def boxes(tmp_path, split="train", **settings):
    source = CocoDataModule(tmp_path, **settings).build(split)
    return sorted(record.boxes_xyxy[0].tolist() for record in source)


ONE_FILE = {
    "Label Studio": ("result.json", "images/{}.jpg", "images/{}.jpg"),
    "Label Studio on Windows": ("result.json", "images\\{}.jpg", "images/{}.jpg"),
    "Label Studio, bare names": ("result.json", "{}.jpg", "images/{}.jpg"),
    "Label Studio, local files": ("result.json", "/data/local-files/?d=images/{}.jpg", "images/{}.jpg"),
    "Label Studio, uploads": ("result.json", "../../media/upload/1/{}.jpg", "images/{}.jpg"),
    "CVAT": ("annotations/instances_default.json", "{}.jpg", "images/default/{}.jpg"),
    "CVAT with folders": ("annotations/instances_default.json", "a/{}.jpg", "images/default/a/{}.jpg"),
    "FiftyOne": ("labels.json", "{}.jpg", "data/{}.jpg"),
    "another folder": ("annotations/all.json", "{}.jpg", "photos/raw/{}.jpg"),
    "another machine": ("all.json", "C:\\Users\\ann\\set\\images\\{}.jpg", "images/{}.jpg"),
    "an address": ("all.json", "https://host/set/{}%20a.jpg", "images/{} a.jpg"),
    "letter case": ("all.json", "Images/{}.JPG", "images/{}.jpg"),
    "images in a folder beside an empty one": ("labels.json", "{}.jpg", "raw/{}.jpg"),
}


@pytest.mark.parametrize("layout", ONE_FILE)
def test_one_file(write, tmp_path, layout):
    write(*ONE_FILE[layout])
    (tmp_path / "images").mkdir(exist_ok=True)
    expected = [[n, 2, n + 30, 42] for n in range(10)]
    assert sorted(boxes(tmp_path) + boxes(tmp_path, "val") + boxes(tmp_path, "test")) == expected


SPLITS = {
    "AutoGluon": ("annotations/{}_labels.json", "{}.jpg", "images/{split}_{}.jpg", "{split}_{}.jpg"),
    "FiftyOne": ("{}/labels.json", "{}.jpg", "{split}/data/{}.jpg", "{}.jpg"),
    "one folder a split": ("{}/annotations.json", "{}.jpg", "{split}/images/{}.jpg", "{}.jpg"),
    "the split in the name": ("coco_{}.json", "x", "images/{split}/{}.jpg", "{split}/{}.jpg"),
    "VOC's images": ("Annotations/coco_{}.json", "x", "JPEGImages/{split}_{}.jpg", "JPEGImages/{split}_{}.jpg"),
}


@pytest.mark.parametrize("layout", SPLITS)
def test_splits(write, tmp_path, layout):
    path, _, stored, listed = SPLITS[layout]
    for split in ("train", "val", "test"):
        write(path.format(split), listed.replace("{split}", split), stored.replace("{split}", split))
    for split in ("train", "val", "test"):
        assert len(boxes(tmp_path, split)) == 10


def test_the_folder_of_the_images_can_be_given(write, tmp_path):
    write("train.json", "{}.jpg", "images/{}.jpg")
    write("train.json", "{}.jpg", "other/{}.jpg")
    (tmp_path / "images" / "3.jpg").unlink()
    # The one that has more of them, and the one that is given.
    assert CocoDataModule(tmp_path).build("train")[0].origin.endswith("0.jpg")
    assert len(boxes(tmp_path)) == 10
    with pytest.raises(ValueError, match=r"image file missing: 1 \(3\.jpg"):
        boxes(tmp_path, images="images")
    with pytest.raises(ValueError, match=r"images=.*nowhere: no such folder"):
        boxes(tmp_path, images="nowhere")


def test_results_of_a_detector_are_no_annotations(write, tmp_path):
    write("train.json", "{}.jpg", "images/{}.jpg")
    (tmp_path / "train_labels.json").write_text(json.dumps([{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]))
    assert len(boxes(tmp_path)) == 10


def test_the_box_format_is_a_setting(write, tmp_path):
    write("train.json", "{}.jpg", "images/{}.jpg")
    assert boxes(tmp_path, box_format="xyxy") == [[n, 2, 30, 40] for n in range(10)]
    with pytest.raises(ValueError, match="box_format='cxcywh' must be xywh or xyxy"):
        boxes(tmp_path, box_format="cxcywh")
