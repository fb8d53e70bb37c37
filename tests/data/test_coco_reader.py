"""`read_coco` on every way in which a COCO file can be wrong."""

from functools import partial

import numpy as np
import pytest
from pycocotools import mask

from tests.data.coco_document import annotation, without
from vr1.data.annotated import AnnotatedSource
from vr1.data.coco_reader import read_coco

FAULTS = {
    "annotation without 'bbox'": without(annotation(), "bbox"),
    "annotation without 'image_id'": without(annotation(), "image_id"),
    "annotation without 'category_id'": without(annotation(), "category_id"),
    "annotation without 'id'": without(annotation(), "id"),
    "annotation whose 'id' is unusable": annotation(id=[50]),
    "annotation whose 'image_id' is unusable": annotation(image_id=5.5),
    "annotation whose 'bbox' is unusable": annotation(bbox=[1, 2, 3]),
    "annotation that is no JSON object": [1, 2],
    "annotation of an unknown category id": annotation(category_id=99),
    "annotation of an unknown image id": annotation(image_id=99),
    "annotation whose 'area' is unusable": annotation(area=-1),
    "annotation whose 'iscrowd' is neither 0 nor 1": annotation(iscrowd=3),
    "box of zero size": annotation(bbox=[10, 20, 0, 40]),
    "box of negative size": annotation(bbox=[10, 20, 30, -4]),
    "box with NaN or infinite numbers": annotation(bbox=[10, float("nan"), 30, 40]),
    "box entirely outside its image": annotation(bbox=[100, 20, 30, 40]),
    "box within 0..1": annotation(bbox=[0.1, 0.2, 0.3, 0.4]),
    "bbox whose 'area' is that of corners": annotation(bbox=[10, 20, 30, 60], area=800),
}
# No image can be said to have lost an object.
OF_NO_IMAGE = {
    "annotation without 'image_id'",
    "annotation whose 'image_id' is unusable",
    "annotation that is no JSON object",
    "annotation of an unknown image id",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_annotations(make, document, fault):
    document["annotations"].append(FAULTS[fault])
    with pytest.raises(
        ValueError, match=rf"(?s)train\.json: 1 problem\n  {fault}[^\n]*: 1 \(annotation.*bad_records: skip"
    ) as error:
        make(document)
    if fault not in OF_NO_IMAGE:
        assert "a.png" in str(error.value)
    source = make(document, bad_records="skip")
    [kind] = source.report.problems.by_kind
    assert kind.startswith(fault)
    # An image that has lost an object is left out, and never asked about as if it had not.
    assert [len(record.labels) for record in source] == [*[3][: fault in OF_NO_IMAGE], 1, 0]
    if fault not in OF_NO_IMAGE:
        note = "1 images with a faulty annotation are left out, with their 3 other objects (a.png)"
        assert note in source.report.notes


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
    note = "1 images with a faulty annotation are left out, with their 0 other objects (empty.png)"
    assert note in source.report.notes


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
    "image whose 'id' is unusable": IMAGE | {"id": [20]},
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


def test_annotation_ids_that_start_anew_in_each_image(make, document):
    """They say nothing about an object: all are read, and renumbered where a tool needs them."""
    for item, number in zip(document["annotations"], (1, 1, 2, 3), strict=True):
        item["id"] = number
    source = make(document)
    assert [len(record.labels) for record in source] == [3, 1, 0]
    note = "1 annotation ids are used more than once, such as 1 on b 2.png; they are renumbered"
    assert note in source.report.notes


def test_an_annotation_that_is_written_twice_counts_once(make, document):
    document["annotations"].append(dict(document["annotations"][0]))
    source = make(document)
    assert [len(record.labels) for record in source] == [3, 1, 0]
    assert "1 annotations are copies of others, id and all, and count once" in source.report.notes


def test_ids_and_numbers_that_are_texts(make, document):
    expected = [(record.labels, record.boxes_xyxy.tolist(), record.areas.tolist()) for record in make(document)]
    for item in document["images"]:
        item |= {"width": str(item["width"]), "height": f"{item['height']}.0", "id": f"img-{item['id']}"}
    for item in document["categories"]:
        item["id"] = f"000{item['id']}"
    for item in document["annotations"]:
        item |= {"id": f"a{item['id']}", "image_id": f"img-{item['image_id']} ", "bbox": list(map(str, item["bbox"]))}
        item |= {"iscrowd": str(item.get("iscrowd", 0))} | ({"area": str(item["area"])} if item.get("area") else {})
    source = make(document, images=False)
    assert [(record.labels, record.boxes_xyxy.tolist(), record.areas.tolist()) for record in source] == expected
    assert [record.image_id for record in source] == [1, 2, 3]
    assert "3 image ids are texts, such as img-5; they are numbered from 1" in source.report.notes
    # Some as numbers and some as texts.
    document["images"][0]["id"], document["images"][1]["id"] = 5, "3"
    for item in document["annotations"]:
        item["image_id"] = item["image_id"].removeprefix("img-")
    assert [record.image_id for record in make(document, images=False)] == [5, 3, 6]


def test_numbers_that_are_no_numbers_stay_faults(make, document):
    document["annotations"].append(annotation(bbox=["1", "2", "3 px", "4"]))
    with pytest.raises(ValueError, match="annotation whose 'bbox' is unusable: 1"):
        make(document)


@pytest.mark.parametrize("missing", [("width",), ("height",), ("width", "height")])
def test_sizes_from_the_headers_of_the_images(make, document, missing):
    make(document)
    for value in (None, 0):
        document["images"][0] |= dict.fromkeys(missing, value)
        source = make(document, images=False)
        assert source[0].boxes_xyxy.tolist() == [[10, 20, 40, 60], [1, 2, 4, 6], [50.5, 0, 100, 80]]
        assert "1 images have no width and height; those of their files are taken" in source.report.notes
    for name in missing:
        del document["images"][0][name]
    assert make(document, images=False).table.sizes[0].tolist() == [100, 80]


def masks():
    """A polygon, and the same of encodings, of an image of 100 x 80; the bounds are those of the pixels themselves."""
    inside = np.zeros((80, 100), np.uint8)
    inside[20:60, 10:40] = 1
    inside[30:70, 25:55] = 1
    rows, columns = np.nonzero(inside)
    bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    encoded = mask.encode(np.asfortranarray(inside))
    flat = inside.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [flat[-1] ^ 1]])))
    runs = np.diff(np.concatenate([[0], edges])).tolist()
    parts = [[10, 20, 40, 20, 40, 60, 10, 60], [25, 30, 55, 30, 55, 70, 25, 70]]
    forms = {
        "polygons": parts,
        "one polygon": [10, 20, 40, 20, 55, 70, 25, 70],
        "polygon as text": [list(map(str, parts[0])), parts[1]],
        "runs": {"size": [80, 100], "counts": runs},
        "text": {"size": [80, 100], "counts": encoded["counts"].decode()},
    }
    return [pytest.param(form, bounds, id=name) for name, form in forms.items()]


@pytest.mark.parametrize(("segmentation", "bounds"), masks())
@pytest.mark.parametrize("bbox", [None, [], "absent"])
def test_boxes_from_segmentations(make, document, segmentation, bounds, bbox):
    item = document["annotations"][0] | {"segmentation": segmentation, "bbox": bbox}
    document["annotations"][0] = without(item, "bbox") if bbox == "absent" else item
    source = make(document)
    assert source[0].boxes_xyxy[0].tolist() == bounds
    assert "1 annotations have no bbox; the bounds of their segmentation are taken" in source.report.notes


@pytest.mark.parametrize(
    "segmentation",
    [
        [],
        [[]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5]],
        [["a", 2, 3, 4, 5, 6]],
        {"size": [80, 100], "counts": [1, 2]},
        {"size": [100, 80], "counts": [8000]},
        {"size": [80, 100], "counts": [8000]},
        {"size": [80, 100], "counts": [-1, 8001]},
        {"size": [80, 100], "counts": "PPo"},
        {"size": [80, 100], "counts": "\x00\xff"},
        {"size": [80, 100]},
        {"counts": [8000]},
        "polygon",
    ],
)
def test_segmentations_without_bounds(make, document, segmentation):
    document["annotations"].append(annotation(segmentation=segmentation, bbox=None))
    with pytest.raises(ValueError, match=r"annotation whose 'bbox' is unusable: 1|box of zero size: 1"):
        make(document)


def corner_document(document, area):
    """All boxes as corners; their sum reaches outside the image for most."""
    for item, box in zip(
        document["annotations"], ([40, 30, 90, 70], [20, 20, 58, 48], [60, 10, 80, 40], [50.5, 0, 99, 80]), strict=True
    ):
        item |= {"bbox": box, "area": (box[2] - box[0]) * (box[3] - box[1]) if area else None}
    return document


@pytest.mark.parametrize("area", [True, False], ids=["area", "over the edge"])
def test_corners_in_place_of_sizes_are_refused(make, document, area):
    document = corner_document(document, area)
    with pytest.raises(ValueError, match="set box_format") as error:
        make(document)
    assert "xyxy" in str(error.value)
    read = partial(read_coco, box_format="xyxy")
    source = make(document, read=read)
    assert source[0].boxes_xyxy.tolist() == [[40, 30, 90, 70], [60, 10, 80, 40], [50.5, 0, 99, 80]]
    if not area:
        assert source[0].areas.tolist() == [2000, 600, 48.5 * 80]
        # Said to be right, they are clipped as any others are.
        source = make(document, read=partial(read_coco, box_format="xywh"))
        assert source[0].boxes_xyxy[0].tolist() == [40, 30, 100, 80]


def test_the_area_of_a_mask_may_be_that_of_corners_by_chance(make, document):
    """The mask lies in the box of width and height, so its area says nothing."""
    document["annotations"].append(
        annotation(bbox=[10, 20, 30, 60], area=800, segmentation=[[10, 20, 40, 20, 40, 47, 10, 47]])
    )
    assert make(document)[0].boxes_xyxy[3].tolist() == [10, 20, 40, 80]
    document["annotations"][-1]["segmentation"] = [[10, 20, 30, 20, 30, 60, 10, 60]]
    with pytest.raises(ValueError, match="bbox whose 'area' is that of corners"):
        make(document)


def test_labels_in_two_unicode_forms_are_one(make, document):
    document["categories"][0]["name"], document["categories"][1]["name"] = "ka\u0308fer", "K\u00c4FER"
    source = make(document, {"categories": ["KA\u0308FER"]})
    assert source.categories == ("k\u00e4fer",)
    assert source[0].labels == ("k\u00e4fer",) * 3
