"""The folder layouts that `coco_splits` understands."""

import json

import pytest

from tests.data.coco_document import annotation
from vr1.data.annotated import AnnotatedSource
from vr1.data.coco import coco_splits


def test_a_single_file_is_split_by_image(make, document, tmp_path):
    document["images"] = [{"id": n, "file_name": f"{n}.png", "width": 20, "height": 20} for n in range(20)]
    document["annotations"] = [annotation(id=n, image_id=n, bbox=[1, 1, 5, 5]) for n in range(20)]
    make(document)
    (tmp_path / "train.json").rename(tmp_path / "all.json")
    splits = coco_splits(tmp_path)
    parts = {name: {record.image_id for record in AnnotatedSource(*split)} for name, split in splits.items()}
    assert {name: len(part) for name, part in parts.items()} == {"train": 16, "valid": 2, "test": 2}
    assert set.union(*parts.values()) == set(range(20))
    document["images"].reverse()
    (tmp_path / "all.json").write_text(json.dumps(document))
    assert {record.image_id for record in AnnotatedSource(*splits["test"])} == parts["test"]
    other = coco_splits(tmp_path, seed=1)["test"]
    assert {record.image_id for record in AnnotatedSource(*other)} != parts["test"]


def test_too_few_images_for_three_parts(make, document, tmp_path):
    make(document)
    (tmp_path / "train.json").rename(tmp_path / "all.json")
    with pytest.raises(ValueError, match=r"none of its 3 images falls into the part 0\.9 to 1 .*file of its own"):
        AnnotatedSource(*coco_splits(tmp_path)["test"])


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            [f"{split}/_annotations.coco.json" for split in ("train", "valid", "test")],
            {split: (f"{split}/_annotations.coco.json", split) for split in ("train", "valid", "test")},
        ),
        (
            ["instances_train.json", "instances_valid.json", "instances_test.json", "images/a.jpg", "detections.json"],
            {split: (f"instances_{split}.json", "images") for split in ("train", "valid", "test")},
        ),
        (
            [
                "annotations/instances_train2017.json",
                "annotations/instances_val2017.json",
                "annotations/person_keypoints_val2017.json",
                "annotations/captions_val2017.json",
                "train2017/a.jpg",
                "val2017/a.jpg",
            ],
            {
                "train": ("annotations/instances_train2017.json", "train2017"),
                "valid": ("annotations/instances_val2017.json", "val2017"),
            },
        ),
        (
            ["annotations/train.json", "annotations/val.json", "images/train/a.jpg", "images/val/a.jpg"],
            {"train": ("annotations/train.json", "images/train"), "valid": ("annotations/val.json", "images/val")},
        ),
        (["train.json", "a.jpg"], {"train": ("train.json", ".")}),
        (["annotations/instances_all.json", "a.jpg"], dict.fromkeys(["train", "valid", "test"], None)),
        (["_annotations.coco.json", "a.jpg", "other.json"], dict.fromkeys(["train", "valid", "test"], None)),
    ],
)
def test_layouts(tmp_path, files, expected):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / file).touch()
    splits = coco_splits(tmp_path)
    assert list(splits) == list(expected)
    for split, names in expected.items():
        annotations, images, portion = splits[split]
        assert (portion is None) == (names is not None)
        if names is not None:
            assert (annotations, images) == (tmp_path / names[0], tmp_path / names[1])
        else:
            assert images == tmp_path


def test_layouts_that_are_unclear(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        coco_splits(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"found no json file\. Looked for\n  train/_annotations\.coco\.json"):
        coco_splits(tmp_path)
    (tmp_path / "a.json").touch()
    (tmp_path / "b.json").touch()
    with pytest.raises(ValueError, match=r"which file has the annotations; found a\.json, b\.json\. Looked for"):
        coco_splits(tmp_path)
    for name in ("train.json", "instances_train.json"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"instances_train\.json and train\.json are all train annotations; keep one"):
        coco_splits(tmp_path)
