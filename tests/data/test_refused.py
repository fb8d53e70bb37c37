"""Images that the model's processor refuses, in every kind of data."""

import json

import pytest

from tests.data.coco_document import annotation
from vr1.data import CocoDataModule, MixtureDataModule, ReferringDataModule
from vr1.data.refused import REFUSED


@pytest.fixture
def root(make, document, tmp_path):
    """Three images, and one of 2275 x 10, which Qwen's processor refuses: a side may be 200 times the other."""
    document["images"].append({"id": 8, "file_name": "thin.png", "width": 2275, "height": 10})
    document["annotations"].append(annotation(image_id=8, bbox=[100, 1, 30, 8]))
    make(document)
    return tmp_path


def test_found_when_the_data_are_opened(root, encoder):
    data = CocoDataModule(root)
    data.refuse_images(encoder.refusal)
    with pytest.raises(ValueError, match=r"train\.json\[3\]: thin\.png, 2275 x 10: absolute aspect ratio") as error:
        data.build("train")
    assert "bad_records: skip" in str(error.value)


def test_left_out_with_bad_records_skip(root, encoder, caplog):
    data = CocoDataModule(root, bad_records="skip")
    data.refuse_images(encoder.refusal)
    source = data.build("train")
    assert [record.image_id for record in source] == [5, 3, 9]
    assert REFUSED in caplog.text
    assert [list(report.problems.by_kind) for report in source.reports()] == [[], [REFUSED]]
    assert source.object_counts.tolist() == [2, 1, 0]
    encoder([source[index] for index in range(len(source))])


@pytest.mark.parametrize("task", ["detection", "grounding"])
def test_a_mixture_does_as_each_part_says(root, encoder, task):
    for bad_records in ("skip", "error"):
        part = CocoDataModule(root, bad_records=bad_records, task=task)
        data = MixtureDataModule({"one": part, "two": CocoDataModule(root, bad_records="skip", task=task)})
        data.refuse_images(encoder.refusal)
        if bad_records == "error":
            with pytest.raises(ValueError, match="thin"):
                data.build("train")
        else:
            assert {record.image_id for record in data.build("train")} <= {5, 3, 9}


def test_sizes_at_the_limit(encoder):
    assert encoder.refusal((100, 80)) is None
    assert encoder.refusal((2000, 10)) is None
    assert "aspect ratio" in encoder.refusal((2001, 10))
    assert "aspect ratio" in encoder.refusal((10, 2275))


@pytest.fixture
def several(tmp_path, picture):
    """Settings of three expressions, each on a scene beside a crop; the second crop is of 2275 x 10."""

    def settings(scene):
        lines = []
        for name, size in (("one", (40, 30)), ("thin", (2275, 10)), ("three", (30, 40))):
            crop, whole = picture(f"{name}.png", size).name, picture(f"{name}_scene.png").name
            images = [crop, whole] if scene == "last" else [whole, crop]
            lines.append({"images": images, "expression": f"like {name}", "bbox_xyxy": [1, 2, 30, 40]})
        (tmp_path / "rec.jsonl").write_text("\n".join(map(json.dumps, lines)))
        path = tmp_path / "rec.jsonl"
        return {"images": tmp_path, "train": {"all": path}, "test": {"all": path}, "scene": scene}

    return settings


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("scene", ["last", "first"])
def test_a_further_image_is_found_when_the_data_are_opened(scene, split, several, encoder):
    data = ReferringDataModule(**several(scene))
    data.refuse_images(encoder.refusal)
    with pytest.raises(ValueError, match=r"thin_scene\.png, further image 1, 2275 x 10: absolute") as error:
        data.build(split)
    assert "one_scene" not in str(error.value)
    assert "three_scene" not in str(error.value)


@pytest.mark.parametrize("scene", ["last", "first"])
def test_a_record_is_left_out_for_a_further_image(scene, several, document, make, tmp_path, encoder):
    data = ReferringDataModule(**several(scene), bad_records="skip")
    data.refuse_images(encoder.refusal)
    source = data.build("train")
    assert [record.categories for record in source] == [("like one",), ("like three",)]
    assert source.reference_sizes == [((40, 30),), ((30, 40),)]
    assert source.reports()[-1].problems.by_kind.keys() == {REFUSED}
    encoder(list(source))
    # The same as a part of a mixture, with a part whose records have one image each.
    make(document)
    mixture = MixtureDataModule({"plain": CocoDataModule(tmp_path), "several": data})
    mixture.refuse_images(encoder.refusal)
    records = list(mixture.build("train"))
    assert ("like one",) in {record.categories for record in records}
    assert ("like thin",) not in {record.categories for record in records}
