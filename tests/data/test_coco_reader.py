"""`read_coco` on every way in which a COCO file can be wrong."""

import pytest

from tests.data.coco_document import annotation, without
from vr1.data.annotated import AnnotatedSource

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
    "box entirely outside its image": annotation(bbox=[100, 20, 30, 40]),
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


def test_boxes_over_the_edge_are_clipped_and_counted(make, document):
    document["annotations"] += [
        annotation(id=11, bbox=[-1, 20, 30, 61]),  # 1 px over, as exporters round
        annotation(id=12, bbox=[90, -5, 30, 40]),
    ]
    source = make(document)
    assert source[0].boxes_xyxy[3:].tolist() == [[0, 20, 29, 80], [90, 0, 100, 35]]
    assert "1 boxes reached outside their image by more than 1 px and were clipped to it (a.png)" in source.report.notes
    assert source.report.rounded == ("a.png",)


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
        AnnotatedSource(tmp_path / "train.json", tmp_path, bad_records="skip")


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"annotations=.*gone\.json: no such file"):
        AnnotatedSource(tmp_path / "gone.json", tmp_path)


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
    assert "annotation ids start at 0; they are renumbered" in str(make(document).report)
