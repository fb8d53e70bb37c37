"""CocoSource on the real data sets, and on every way in which a file can be wrong."""

import copy
import json
import logging
import pickle
import re

import numpy as np
import pytest
from PIL import ExifTags, Image
from pycocotools.coco import COCO

from tests.shared_data import SHARED, needs_shared
from vr1.data.dataset import CocoSource, split_files
from vr1.data.images import ImageError

DOCUMENT = {
    "images": [
        {"id": 5, "file_name": "a.png", "width": 100, "height": 80},
        {"id": 3, "file_name": "b 2.png", "width": 60, "height": 50},
        {"id": 9, "file_name": "empty.png", "width": 40, "height": 30},
    ],
    "categories": [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 1, "name": "never"}],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 2, "bbox": [10, 20, 30, 40], "area": 700, "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 7, "bbox": [0, 0, 60, 50]},
        {"id": 3, "image_id": 5, "category_id": 7, "bbox": [1, 2, 3, 4], "area": None, "iscrowd": 1},
        {"id": 4, "image_id": 5, "category_id": 2, "bbox": [50.5, 0, 49.5, 80], "iscrowd": 0},
    ],
}


@pytest.fixture
def document():
    return copy.deepcopy(DOCUMENT)


@pytest.fixture
def make(tmp_path):
    """Writes a document and its images, and opens the source."""

    def _make(document, images=True, **settings) -> CocoSource:
        for image in document["images"] if images else []:
            if isinstance(image, dict) and "file_name" in image:
                (tmp_path / image["file_name"]).parent.mkdir(exist_ok=True)
                Image.new("RGB", (image.get("width", 4), image.get("height", 4))).save(tmp_path / image["file_name"])
        (tmp_path / "train.json").write_text(json.dumps(document))
        return CocoSource(tmp_path / "train.json", tmp_path, **settings)

    return _make


def test_detection_records(make, document):
    source = make(document)
    assert source.categories == ("dog", "cat")
    assert len(source) == 3
    first, second, third = list(source)
    assert (first.image_id, first.image.size, first.labels) == (5, (100, 80), ("cat", "dog", "cat"))
    assert first.boxes_xyxy.tolist() == [[10, 20, 40, 60], [1, 2, 4, 6], [50.5, 0, 100, 80]]
    assert first.areas.tolist() == [700, 12, 49.5 * 80]
    assert first.crowd.tolist() == [False, True, False]
    assert first.categories == second.categories == ("dog", "cat")
    assert second.origin.endswith("train.json[1]: b 2.png")
    assert third.boxes_xyxy.shape == (0, 4)
    assert third.labels == ()
    assert source[-1].image_id == 9
    with pytest.raises(IndexError):
        source[3]


def test_records_do_not_share_their_arrays(make, document):
    source = make(document)
    source[0].boxes_xyxy[:] = 0
    source[0].areas[:] = 0
    assert source[0].boxes_xyxy.max() == 100
    assert source[0].areas.max() == 49.5 * 80


def test_a_source_travels_to_worker_processes(make, document):
    source = pickle.loads(pickle.dumps(make(document)))
    assert source[0].labels == ("cat", "dog", "cat")


def test_grounding_records(make, document, caplog):
    source = make(document, task="grounding")
    assert [(record.image_id, record.categories, record.labels) for record in source] == [
        (5, ("cat",), ("cat", "cat")),
        (3, ("dog",), ("dog",)),
    ]
    assert "1 pairs of image and category are not asked for: crowd regions only" in caplog.text
    assert "1 images without objects are not asked about" in caplog.text


def test_negatives_are_drawn_by_seed_and_share(make):
    rng = np.random.default_rng(0)
    document = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 20, "height": 20} for n in range(30)],
        "categories": [{"id": n, "name": f"kind {n}"} for n in range(5)],
        "annotations": [
            {"id": n, "image_id": n % 28, "category_id": int(rng.integers(5)), "bbox": [1, 1, 9, 9]} for n in range(60)
        ],
    }
    plain = make(document, task="grounding")
    source = make(document, task="grounding", negatives=0.25)
    pairs = [(record.image_id, record.categories, len(record.labels)) for record in source]
    negatives = [pair for pair in pairs if pair[2] == 0]
    assert len(source) == len(plain) + len(negatives)
    assert len(negatives) == round(len(plain) / 3)
    assert len(set(pairs)) == len(pairs)
    assert [pair for pair in pairs if pair[2]] == [(r.image_id, r.categories, len(r.labels)) for r in plain]
    again = make(document, task="grounding", negatives=0.25)
    other = make(document, task="grounding", negatives=0.25, seed=1)
    assert pairs == [(record.image_id, record.categories, len(record.labels)) for record in again]
    assert pairs != [(record.image_id, record.categories, len(record.labels)) for record in other]


def test_impossible_negatives(make, document):
    everywhere = document | {"images": document["images"][1:2], "annotations": document["annotations"][1:2]}
    with pytest.raises(ValueError, match=r"negatives=0\.5: every category is on every image.*set negatives: 0"):
        make(everywhere, task="grounding", negatives=0.5)
    source = make(document, task="grounding", negatives=0.9)
    assert "only 3 negative questions are possible, of 18 wanted" in str(source.report)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "segment"}, "task='segment': choose detection or grounding"),
        ({"bad_records": "ignore"}, "bad_records='ignore': choose error or skip"),
        ({"empty_images": "drop"}, "empty_images='drop': choose keep or skip"),
        ({"task": "grounding", "negatives": 1.0}, "negatives=1.0: give the share"),
        ({"negatives": 0.1}, "negatives=0.1: only task: grounding"),
        ({"header_checks": -1}, "header_checks=-1: give a number of images"),
        ({"categories": ["cat", "zebra"]}, r"zebra not in the file; .*train\.json has dog, cat, never"),
        ({"categories": ["cat", "Cat"]}, "a name twice"),
        ({"categories": []}, r"categories=\[\]: empty"),
    ],
)
def test_wrong_settings(make, document, settings, message):
    with pytest.raises(ValueError, match=message):
        make(document, **settings)


def test_chosen_categories(make, document):
    source = make(document, categories=["Cat", "never"])
    assert source.categories == ("cat", "never")
    assert [record.labels for record in source] == [("cat", "cat"), (), ()]
    assert "2 objects are of categories that are not asked for" in str(source.report)


def test_empty_images_are_left_out_on_request(make, document):
    source = make(document, empty_images="skip")
    assert [record.image_id for record in source] == [5, 3]
    assert "1 images without objects are left out (empty_images: skip)" in source.report.notes


def test_report_is_logged_once(make, document, caplog):
    source = make(document)
    assert "categories without any object, not asked for: never" in caplog.text
    assert len(caplog.records) == 1
    list(source)
    assert len(caplog.records) == 1
    document["categories"].pop()
    caplog.clear()
    make(document)
    assert not caplog.records


def without(item: dict, key: str) -> dict:
    return {name: value for name, value in item.items() if name != key}


def annotation(**changes) -> dict:
    return {"id": 50, "image_id": 5, "category_id": 2, "bbox": [10, 20, 30, 40]} | changes


FAULTS = {
    "annotation without 'bbox'": without(annotation(), "bbox"),
    "annotation without 'image_id'": without(annotation(), "image_id"),
    "annotation without 'category_id'": without(annotation(), "category_id"),
    "annotation without 'id'": without(annotation(), "id"),
    "annotation whose 'id' is unusable": annotation(id="fifty"),
    "annotation whose 'bbox' is unusable": annotation(bbox=[1, 2, 3]),
    "annotation that is no JSON object": [1, 2],
    "annotation of an unknown category id": annotation(category_id=99),
    "annotation of an unknown image id": annotation(image_id=99),
    "annotation id used twice": annotation(id=1),
    "annotation whose 'area' is unusable": annotation(area=-1),
    "annotation whose 'iscrowd' is neither 0 nor 1": annotation(iscrowd=3),
    "box of zero size": annotation(bbox=[10, 20, 0, 40]),
    "box of negative size": annotation(bbox=[10, 20, 30, -4]),
    "box with NaN or infinite numbers": annotation(bbox=[10, float("nan"), 30, 40]),
    "box wholly outside its image": annotation(bbox=[100, 20, 30, 40]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_annotations(make, document, fault):
    document["annotations"].append(FAULTS[fault])
    with pytest.raises(
        ValueError, match=rf"(?s)train\.json: 1 problem\n  {fault}: 1 \(annotation.*bad_records: skip"
    ) as error:
        make(document)
    if isinstance(FAULTS[fault], dict) and FAULTS[fault].get("image_id") == 5:
        assert "a.png" in str(error.value)
    source = make(document, bad_records="skip")
    assert list(source.report.problems.by_kind) == [fault]
    assert [len(record.labels) for record in source] == [3, 1, 0]


def test_a_side_too_small_to_tell_its_corners_apart(make, document):
    document["annotations"].append(annotation(bbox=[10, 20, 1e-20, 40]))
    with pytest.raises(ValueError, match="box of zero size"):
        make(document)


def test_infinite_boxes(make, document):
    document["annotations"].append(annotation(bbox=[0, 0, float("inf"), 5]))
    with pytest.raises(ValueError, match="box with NaN or infinite numbers"):
        make(document)


def test_an_image_of_faulty_annotations_only_is_no_negative(make, document):
    document["annotations"].append(annotation(image_id=9, bbox=[0, 0, 0, 0]))
    source = make(document, bad_records="skip")
    assert [record.image_id for record in source] == [5, 3]
    assert "1 images whose every annotation is faulty are left out (empty.png)" in source.report.notes


def test_boxes_over_the_edge_are_cut_and_counted(make, document):
    document["annotations"] += [
        annotation(id=11, bbox=[-1, 20, 30, 61]),  # 1 px over, as exporters round
        annotation(id=12, bbox=[90, -5, 30, 40]),
    ]
    source = make(document)
    assert source[0].boxes_xyxy[3:].tolist() == [[0, 20, 29, 80], [90, 0, 100, 35]]
    assert "1 boxes stuck out of their image by more than 1 px and were cut to it" in source.report.notes


IMAGE = {"id": 20, "file_name": "c.png", "width": 10, "height": 10}
IMAGE_FAULTS = {
    "image without 'id'": without(IMAGE, "id"),
    "image without 'file_name'": without(IMAGE, "file_name"),
    "image without 'width'": without(IMAGE, "width"),
    "image without 'height'": without(IMAGE, "height"),
    "image whose 'height' is unusable": IMAGE | {"height": 0},
    "image whose 'id' is unusable": IMAGE | {"id": "twenty"},
    "image that is no JSON object": "c.png",
}


@pytest.mark.parametrize("fault", IMAGE_FAULTS)
def test_faulty_images(make, document, tmp_path, fault):
    make(document)
    document["images"].append(IMAGE_FAULTS[fault])
    document["annotations"].append(annotation(image_id=20))
    with pytest.raises(ValueError, match=rf"{fault}: 1 \(images\[3\]"):
        make(document, images=False)
    source = make(document, images=False, bad_records="skip")
    assert [record.image_id for record in source] == [5, 3, 9]


def test_images_that_share_an_id_are_all_left_out(make, document):
    document["images"].append({"id": 3, "file_name": "c.png", "width": 60, "height": 50})
    with pytest.raises(ValueError, match=r"image id used twice: 1 \(images\[3\] c\.png: id 3, also b 2\.png\)"):
        make(document)
    source = make(document, bad_records="skip")
    assert [record.image_id for record in source] == [5, 9]
    assert "1 annotations go with images that are left out" in source.report.notes


def test_all_problems_are_listed_at_once(make, document):
    document["annotations"] += [annotation(id=100 + n, bbox=[0, 0, 0, 1]) for n in range(7)]
    document["annotations"].append(annotation(category_id=99))
    with pytest.raises(ValueError, match="8 problems") as error:
        make(document)
    text = str(error.value)
    assert "box of zero size: 7 (annotation 100 on a.png (100 x 80): category id 2, bbox [0, 0, 0, 1]; " in text
    assert "and 2 more)" in text
    assert "unknown category id: 1 (annotation 50 on a.png (100 x 80): category id 99" in text
    assert text.endswith("set bad_records: skip to leave these out.")


def test_missing_images(make, document, tmp_path):
    make(document)
    (tmp_path / "b 2.png").unlink()
    document["images"][2]["file_name"] = "nowhere/empty.png"
    expected = re.escape("image file missing: 2 (b 2.png (id 3); nowhere/empty.png (id 9))")
    with pytest.raises(ValueError, match=expected):
        make(document, images=False)
    assert [record.image_id for record in make(document, images=False, bad_records="skip")] == [5]
    with pytest.raises(ValueError, match=r"images=.*gone: no such folder"):
        CocoSource(tmp_path / "train.json", tmp_path / "gone")


def test_images_in_folders_of_their_own(make, document):
    document["images"][0]["file_name"] = "deep/a.png"
    assert make(document)[0].image.size == (100, 80)


def test_nothing_left(make, document):
    with pytest.raises(ValueError, match="no record is left to read"):
        make({"images": [], "annotations": [], "categories": []})
    with pytest.raises(ValueError, match="none of its 3 images has an object"):
        make(document | {"annotations": []})
    with pytest.raises(ValueError, match="no record is left to read"):
        make(document | {"annotations": []}, categories=["cat"], empty_images="skip")
    assert len(make(document | {"annotations": []}, categories=["cat"])) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{'images'", r"train\.json: not JSON"),
        ("", "not JSON"),
        ("[]", "holds a list at the top.*detection results"),
        ('{"images": [], "categories": []}', r"has no list 'annotations', only \['categories', 'images'\]"),
        ('{"annotations": [], "categories": []}', "has no list 'images'"),
        ('{"images": [], "annotations": []}', "has no list 'categories'"),
        ('{"images": {}, "annotations": [], "categories": []}', "has no list 'images'"),
    ],
)
def test_files_that_are_not_coco(tmp_path, text, message):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        CocoSource(tmp_path / "train.json", tmp_path, bad_records="skip")


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"annotations=.*gone\.json: no such file"):
        CocoSource(tmp_path / "gone.json", tmp_path)


@pytest.mark.parametrize(
    ("category", "message"),
    [
        ({"id": 4}, r"categories\[3\] = .*category without 'name'"),
        ({"name": "cow"}, "category without 'id'"),
        ({"id": 4, "name": " "}, "category whose 'name' is unusable"),
        ({"id": 7, "name": "cow"}, "category id 7 used twice"),
    ],
)
def test_unusable_categories(make, document, category, message):
    document["categories"].append(category)
    with pytest.raises(ValueError, match=message):
        make(document, bad_records="skip")


def test_categories_of_one_name_are_merged(make, document):
    document["categories"][0]["name"] = "CAT "
    source = make(document)
    assert source.categories == ("CAT",)
    assert source[0].labels == ("CAT", "CAT", "CAT")
    assert "category 2 (cat) is merged with CAT: the same name" in source.report.notes


def test_annotation_ids_from_0(make, document):
    document["annotations"][0]["id"] = 0
    assert "annotation ids start at 0; they are numbered afresh" in str(make(document).report)


def test_wrong_sizes(make, document, tmp_path):
    make(document)
    document["images"][1] |= {"width": 61}
    expected = (
        r"image whose size in the annotations is not that of the file: 1 "
        r"\(.*b 2\.png is 60 x 50, the annotations say 61 x 50\)"
    )
    with pytest.raises(ValueError, match=expected):
        make(document, images=False)
    assert [record.image_id for record in make(document, images=False, bad_records="skip")] == [5, 9]


def test_wrong_sizes_that_no_header_check_saw(make, document, tmp_path, caplog):
    make(document)
    document["images"][1] |= {"width": 61}
    source = make(document, images=False, header_checks=0)
    with pytest.raises(
        ImageError, match=r"b 2\.png is 60 x 50, the annotations say 61 x 50; mend the annotations, or set"
    ):
        source[1]
    caplog.clear()
    source = make(document, images=False, header_checks=0, bad_records="skip")
    assert source[1].image_id == 9
    assert "the next record takes its place (bad_records: skip)" in caplog.text


def test_damaged_images(make, document, tmp_path):
    make(document)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(ImageError, match=r"a\.png: .*fetch"):
        make(document, images=False)[0]
    source = make(document, images=False, bad_records="skip")
    assert source[0].image_id == 3
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"image file unreadable: 1 \(.*a\.png: not an image"):
        make(document, images=False)
    for name in ("b 2.png", "empty.png"):
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"empty\.png: not an image"):
        make(document, images=False, bad_records="skip", header_checks=0)[0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_pictures_whose_json_ignores_exif(make, document, tmp_path, orientation):
    pixels = np.zeros((80, 100, 3), np.uint8)
    pixels[20:60, 10:40] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    document["annotations"] = document["annotations"][:1]
    upright = orientation < 5
    make(document)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    record = make(document, images=False, header_checks=0 if orientation % 2 else 10)[0]
    assert record.image.size == ((100, 80) if upright else (80, 100))
    if upright and orientation > 1:
        return  # same size either way: the json is taken to speak of the upright picture
    rows, columns = np.nonzero(np.asarray(record.image)[..., 0])
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert record.boxes_xyxy.tolist() == [expected]


def test_json_that_gives_the_upright_size(make, document, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    make(document)
    Image.new("RGB", (80, 100)).save(tmp_path / "a.png", exif=exif)
    record = make(document, images=False)[0]
    assert record.image.size == (100, 80)
    assert record.boxes_xyxy[0].tolist() == [10, 20, 40, 60]


def test_a_single_file_is_split_by_image(make, document, tmp_path):
    document["images"] = [{"id": n, "file_name": f"{n}.png", "width": 20, "height": 20} for n in range(20)]
    document["annotations"] = [annotation(id=n, image_id=n, bbox=[1, 1, 5, 5]) for n in range(20)]
    make(document)
    (tmp_path / "train.json").rename(tmp_path / "all.json")
    found = split_files(tmp_path)
    parts = {name: {record.image_id for record in CocoSource(*split)} for name, split in found.items()}
    assert {name: len(part) for name, part in parts.items()} == {"train": 16, "valid": 2, "test": 2}
    assert set.union(*parts.values()) == set(range(20))
    document["images"].reverse()
    (tmp_path / "all.json").write_text(json.dumps(document))
    assert {record.image_id for record in CocoSource(*found["test"])} == parts["test"]
    other = split_files(tmp_path, seed=1)["test"]
    assert {record.image_id for record in CocoSource(*other)} != parts["test"]


def test_too_few_images_for_three_parts(make, document, tmp_path):
    make(document)
    (tmp_path / "train.json").rename(tmp_path / "all.json")
    with pytest.raises(ValueError, match=r"none of its 3 images falls into the part 0\.9 to 1 .*file of its own"):
        CocoSource(*split_files(tmp_path)["test"])


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
    found = split_files(tmp_path)
    assert list(found) == list(expected)
    for split, names in expected.items():
        annotations, images, portion = found[split]
        assert (portion is None) == (names is not None)
        if names is not None:
            assert (annotations, images) == (tmp_path / names[0], tmp_path / names[1])
        else:
            assert images == tmp_path


def test_layouts_that_cannot_be_told(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        split_files(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"found no json file\. Looked for\n  train/_annotations\.coco\.json"):
        split_files(tmp_path)
    (tmp_path / "a.json").touch()
    (tmp_path / "b.json").touch()
    with pytest.raises(ValueError, match=r"cannot tell the annotations; found a\.json, b\.json\. Looked for"):
        split_files(tmp_path)
    for name in ("train.json", "instances_train.json"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"instances_train\.json and train\.json are all train annotations; keep one"):
        split_files(tmp_path)


@needs_shared
@pytest.mark.parametrize("name", ["raccoon", "mushrooms", "packages", "thermal"])
def test_real_data_as_pycocotools_reads_it(name, caplog):
    caplog.set_level(logging.WARNING)
    for annotations, images, portion in split_files(SHARED / name).values():
        source, reference = CocoSource(annotations, images, portion), COCO(str(annotations))
        assert [source._table.image_ids[row] for row in range(len(source))] == reference.getImgIds()
        names = {category["id"]: category["name"] for category in reference.loadCats(reference.getCatIds())}
        for record in (source[row] for row in range(0, len(source), 1 if name == "raccoon" else 5)):
            own = reference.loadAnns(reference.getAnnIds(record.image_id))
            boxes = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in own)]
            assert record.boxes_xyxy.tolist() == boxes
            assert record.labels == tuple(names[a["category_id"]] for a in own)
            assert record.areas.tolist() == [a["area"] for a in own]
            assert record.image.mode == "RGB"
    assert not caplog.records


@needs_shared
def test_anomalies_of_the_real_data():
    anomalies = json.loads((SHARED / "anomalies.json").read_text())
    for split, names in anomalies["thermal"]["images_without_object"].items():
        source = CocoSource(*split_files(SHARED / "thermal")[split])
        empty = [record.origin.split(": ")[-1] for record in source if not record.labels]
        assert sorted(empty) == sorted(names)

    path = SHARED / "bccd/instances_sample.json"
    with pytest.raises(ValueError, match="box of zero size: 2") as error:
        CocoSource(path, path.parent / "images")
    for name, bbox in anomalies["bccd"]["zero_area"]:
        assert f"on {name} (640 x 480): category id 2, bbox {[float(value) for value in bbox]}" in str(error.value)
    source = CocoSource(path, path.parent / "images", bad_records="skip")
    assert (len(source), source.report.objects) == (33, 460)

    path = SHARED / "packages/roboflow_coco_export_verbatim/_annotations.coco.json"
    source = CocoSource(path, path.parent)
    assert source.categories == ("package",)
    assert "annotation ids start at 0" in str(source.report)
    assert "not asked for: packages" in str(source.report)
    assert [record.image_id for record in source] == [0, 1, 2]


@needs_shared
def test_real_data_with_missing_images_and_boxes_a_pixel_over():
    path = SHARED / "cartucho_map/instances_all.json"
    with pytest.raises(ValueError, match=r"image file missing: 56 \(2007_000032\.jpg \(id 2\); .*and 51 more\)"):
        CocoSource(path, path.parent / "images")
    source = CocoSource(path, path.parent / "images", bad_records="skip")
    assert len(source) == 29
    assert not any("stuck out" in note for note in source.report.notes)


@needs_shared
def test_grounding_on_real_data():
    source = CocoSource(*split_files(SHARED / "thermal")["test"], task="grounding", negatives=0.2)
    negatives = [record for record in source if not record.labels]
    assert len(negatives) == round((len(source) - len(negatives)) / 4)
    assert all(set(record.labels) <= set(record.categories) for record in source)
    assert all(len(record.categories) == 1 for record in source)
