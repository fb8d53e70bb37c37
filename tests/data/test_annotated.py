"""`AnnotatedSource` on small documents and on the real data sets."""

import json
import logging
import pickle

import numpy as np
import pytest
from PIL import ExifTags, Image
from pycocotools.coco import COCO

from tests.shared_data import SHARED, needs_shared
from vr1.data.annotated import AnnotatedSource
from vr1.data.coco import coco_splits
from vr1.data.images import ImageError
from vr1.data.questions import Questions


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
    source = make(document, {"task": "grounding"})
    assert [(record.image_id, record.categories, record.labels) for record in source] == [
        (5, ("cat",), ("cat", "cat")),
        (3, ("dog",), ("dog",)),
    ]
    assert "1 pairs of image and category have no question: crowd regions only" in caplog.text
    assert "1 images without objects have no question" in caplog.text


def test_negatives_are_drawn_by_seed_and_share(make):
    rng = np.random.default_rng(0)
    document = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 20, "height": 20} for n in range(30)],
        "categories": [{"id": n, "name": f"kind {n}"} for n in range(5)],
        "annotations": [
            {"id": n, "image_id": n % 28, "category_id": int(rng.integers(5)), "bbox": [1, 1, 9, 9]} for n in range(60)
        ],
    }
    plain = make(document, {"task": "grounding"})
    source = make(document, {"task": "grounding", "negatives": 0.25})
    pairs = [(record.image_id, record.categories, len(record.labels)) for record in source]
    negatives = [pair for pair in pairs if pair[2] == 0]
    assert len(source) == len(plain) + len(negatives)
    assert len(negatives) == round(len(plain) / 3)
    assert len(set(pairs)) == len(pairs)
    assert [pair for pair in pairs if pair[2]] == [(r.image_id, r.categories, len(r.labels)) for r in plain]
    again = make(document, {"task": "grounding", "negatives": 0.25})
    other = make(document, {"task": "grounding", "negatives": 0.25}, seed=1)
    assert pairs == [(record.image_id, record.categories, len(record.labels)) for record in again]
    assert pairs != [(record.image_id, record.categories, len(record.labels)) for record in other]


def test_impossible_negatives(make, document):
    everywhere = document | {"images": document["images"][1:2], "annotations": document["annotations"][1:2]}
    with pytest.raises(ValueError, match=r"negatives=0\.5: every category is on every image.*set negatives: 0"):
        make(everywhere, {"task": "grounding", "negatives": 0.5})
    source = make(document, {"task": "grounding", "negatives": 0.9})
    assert "only 3 negative questions are possible; negatives=0.9 sets 18" in str(source.report)


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ({"task": "segment"}, r"data\.task='segment': choose detection or grounding"),
        ({"empty_images": "drop"}, r"data\.empty_images='drop': choose keep or skip"),
        ({"task": "grounding", "negatives": 1.0}, r"data\.negatives=1\.0: give the share"),
        ({"task": "grounding", "negatives": float("nan")}, r"data\.negatives=nan: give the share"),
        ({"negatives": 0.1}, r"data\.negatives=0\.1: only task: grounding has"),
        (
            {"categories": ["cat", "zebra"]},
            r"zebra not in the file; choose among .*train\.json: dog, cat, never",
        ),
        ({"categories": ["cat", "Cat"]}, "a name twice"),
        ({"categories": []}, r"data\.categories=\[\]: empty"),
    ],
)
def test_wrong_questions(make, document, questions, message):
    with pytest.raises(ValueError, match=message):
        make(document, questions)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bad_records": "ignore"}, r"data\.bad_records='ignore': choose error or skip"),
        ({"header_checks": -1}, "header_checks=-1: give a number of images"),
    ],
)
def test_wrong_settings(make, document, settings, message):
    with pytest.raises(ValueError, match=message):
        make(document, **settings)


def test_chosen_categories(make, document):
    source = make(document, {"categories": ["Cat", "never"]})
    assert source.categories == ("cat", "never")
    assert [record.labels for record in source] == [("cat", "cat"), (), ()]
    assert "2 objects are of categories that no question names" in str(source.report)


def test_empty_images_are_left_out_on_request(make, document):
    source = make(document, {"empty_images": "skip"})
    assert [record.image_id for record in source] == [5, 3]
    assert "1 images without objects are left out (empty_images: skip)" in source.report.notes


def test_report_is_logged_once(make, document, caplog):
    source = make(document)
    assert "categories without any object, which no question names: never" in caplog.text
    assert len(caplog.records) == 1
    list(source)
    assert len(caplog.records) == 1
    document["categories"].pop()
    caplog.clear()
    make(document)
    assert not caplog.records


def test_nothing_left(make, document):
    with pytest.raises(ValueError, match="no record is left to read"):
        make({"images": [], "annotations": [], "categories": []})
    with pytest.raises(ValueError, match="none of its 3 images has an object"):
        make(document | {"annotations": []})
    with pytest.raises(ValueError, match="no record is left to read"):
        make(document | {"annotations": []}, {"categories": ["cat"], "empty_images": "skip"})
    assert len(make(document | {"annotations": []}, {"categories": ["cat"]})) == 3


def test_wrong_sizes_that_no_header_check_saw(make, document, tmp_path, caplog):
    make(document)
    document["images"][1] |= {"width": 61}
    source = make(document, images=False, header_checks=0)
    with pytest.raises(
        ImageError, match=r"b 2\.png is 60 x 50, the annotations say 61 x 50; fix the annotations, or set"
    ):
        source[1]
    caplog.clear()
    source = make(document, images=False, header_checks=0, bad_records="skip")
    assert source[1].image_id == 9
    assert "record 2 is used in place of record 1 (bad_records: skip)" in caplog.text


def test_damaged_images(make, document, tmp_path):
    make(document)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(ImageError, match=r"a\.png: .*download"):
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


@needs_shared
@pytest.mark.parametrize("name", ["raccoon", "mushrooms", "packages", "thermal"])
def test_real_data_as_pycocotools_reads_it(name, caplog):
    caplog.set_level(logging.WARNING)
    for annotations, images, portion in coco_splits(SHARED / name).values():
        source, reference = AnnotatedSource(annotations, images, portion), COCO(str(annotations))
        assert [source.table.image_ids[row] for row in range(len(source))] == reference.getImgIds()
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
        source = AnnotatedSource(*coco_splits(SHARED / "thermal")[split])
        empty = [record.origin.split(": ")[-1] for record in source if not record.labels]
        assert sorted(empty) == sorted(names)

    path = SHARED / "bccd/instances_sample.json"
    with pytest.raises(ValueError, match="box of zero size: 2") as error:
        AnnotatedSource(path, path.parent / "images")
    for name, bbox in anomalies["bccd"]["zero_area"]:
        assert f"on {name} (640 x 480): category id 2, bbox {[float(value) for value in bbox]}" in str(error.value)
    source = AnnotatedSource(path, path.parent / "images", bad_records="skip")
    # Two images have lost an object, and 24 others with them.
    assert (len(source), source.report.objects) == (33 - 2, 462 - 26)

    path = SHARED / "packages/roboflow_coco_export_verbatim/_annotations.coco.json"
    source = AnnotatedSource(path, path.parent)
    assert source.categories == ("package",)
    assert "annotation ids start at 0" in str(source.report)
    assert "which no question names: packages" in str(source.report)
    assert [record.image_id for record in source] == [0, 1, 2]


@needs_shared
def test_real_data_with_missing_images_and_boxes_a_pixel_over():
    path = SHARED / "cartucho_map/instances_all.json"
    with pytest.raises(ValueError, match=r"image file missing: 56 \(2007_000032\.jpg \(id 2\); .*and 51 more\)"):
        AnnotatedSource(path, path.parent / "images")
    source = AnnotatedSource(path, path.parent / "images", bad_records="skip")
    assert len(source) == 29
    assert not any("reached outside" in note for note in source.report.notes)


@needs_shared
def test_grounding_on_real_data():
    source = AnnotatedSource(
        *coco_splits(SHARED / "thermal")["test"], questions=Questions(task="grounding", negatives=0.2)
    )
    negatives = [record for record in source if not record.labels]
    assert len(negatives) == round((len(source) - len(negatives)) / 4)
    assert all(set(record.labels) <= set(record.categories) for record in source)
    assert all(len(record.categories) == 1 for record in source)
