"""One folder for each format with one fault of each kind: `check` names every one, and no half truth is left to train.

Every image has two objects, of which the fault spoils one. So whatever is still asked about has both.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.command import CONFIGS, run
from vr1.data import CocoDataModule, ReferringDataModule, VocDataModule, YoloDataModule

SIZE = (100, 80)
GOOD = [[10, 20, 40, 60], [50, 10, 90, 70]]
# Faults of the file itself, the same for all formats.
FILES = {
    "image file missing": lambda path: path.unlink(),
    "image file unreadable": lambda path: path.write_bytes(b"no image"),
    "damaged or cut short": lambda path: path.write_bytes(path.read_bytes()[:900]),
    "refuses the image of 1200 x 4 pixels": lambda path: Image.new("RGB", (1200, 4)).save(path),
}


@pytest.fixture
def picture(tmp_path):
    """Writes an image of noise below the test's folder."""

    def write(name, size=SIZE):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(abs(hash(name)) % 2**32).integers(0, 255, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def checked(tmp_path, tiny_model):
    """The text of `check` on the training data of a configuration."""

    def _checked(data, status=1):
        (tmp_path / "data.config.yaml").write_text(yaml.safe_dump({"data": data}))
        arguments = ["--config", CONFIGS / "raccoon.yaml", "--config", tmp_path / "data.config.yaml"]
        arguments += ["--model", tiny_model, "--data.num_workers", 0, "--out", tmp_path / "checked"]
        assert run(tmp_path, "check", *arguments) == status
        return (tmp_path / "checked" / "check.txt").read_text()

    return _checked


def assert_named(text, expected):
    """Every fault is named once, with its image or record."""
    lines = text.splitlines()
    for kind, where in expected.items():
        # A kind with its count and its records below, or a record that could not be read.
        named = [row for row, line in enumerate(lines) if kind in line]
        assert named, f"not named: {kind}\n{text}"
        counts = [int(count[1]) if (count := re.search(r": (\d+)$", lines[row])) else 0 for row in named]
        shown = [line for row, count in zip(named, counts, strict=True) for line in lines[row : row + 1 + count]]
        assert any(where in line for line in shown), f"{kind} without {where}:\n{shown}"
    assert "no anomalies" not in text


def assert_whole(source, objects=2):
    """Each record that is left has all of its objects, and the first, without a fault, is one of them."""
    counts = []
    for index in range(len(source)):
        try:
            record = source[index]
        except ValueError:
            continue
        counts.append(len(record.labels))
        assert len(record.labels) in (objects, 0)
    assert objects in counts


COCO_OBJECTS = {
    "box of zero size": {"bbox": [10, 20, 0, 30]},
    "box of negative size": {"bbox": [10, 20, -3, 30]},
    "box with NaN or infinite numbers": {"bbox": [10, float("nan"), 3, 30]},
    "box entirely outside its image": {"bbox": [300, 20, 10, 30]},
    "box within 0..1": {"bbox": [0.1, 0.2, 0.3, 0.4]},
    "bbox whose 'area' is that of corners": {"bbox": [10, 20, 30, 60], "area": 800},
    "annotation without 'bbox'": {},
    "annotation whose 'bbox' is unusable": {"bbox": [1, 2, "x", 4]},
    "annotation whose 'area' is unusable": {"bbox": [1, 2, 3, 4], "area": -1},
    "annotation whose 'iscrowd' is neither 0 nor 1": {"bbox": [1, 2, 3, 4], "iscrowd": 2},
    "annotation of an unknown category id": {"bbox": [1, 2, 3, 4], "category_id": 99},
    "annotation whose 'category_id' is unusable": {"bbox": [1, 2, 3, 4], "category_id": None},
    "annotation whose 'id' is unusable": {"bbox": [1, 2, 3, 4], "id": None},
}
COCO_IMAGES = {
    "image without 'file_name'": {"file_name": None},
    "image whose 'width' is unusable": {"width": -5},
    "image whose size in the annotations is not that of the file": {"height": 81},
    "image id used twice": {"id": 1},
}


def coco_document(picture):
    images, annotations, expected = [], [], {}

    def add(kind, image=None, second=None):
        number = len(images)
        name = f"{number:02d}.png"
        path = picture(f"images/{name}", SIZE)
        entry = {"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]}
        images.append({key: value for key, value in (entry | (image or {})).items() if value is not None})
        boxes = [{"bbox": [x1, y1, x2 - x1, y2 - y1]} for x1, y1, x2, y2 in GOOD]
        for item in [boxes[0], boxes[1] if second is None else second]:
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1} | item)
        expected[kind] = name
        return path

    for number in range(3):
        add(f"good {number}")
    for kind, second in COCO_OBJECTS.items():
        add(kind, second=second)
    for kind, change in COCO_IMAGES.items():
        path = add(kind, image=change)
        if "id" in change:
            expected[kind] = path.name
    expected["image without 'file_name'"] = "images["
    for kind, spoil in FILES.items():
        path = add(kind)
        spoil(path)
        if "1200 x 4" in kind:
            images[-1] |= {"width": 1200, "height": 4}
            for item in annotations[-2:]:
                item["bbox"] = [item["bbox"][0], 1, 20, 3]
    add("image file under two image ids, of different sizes")
    images.append(images[-1] | {"id": 900, "width": 50, "height": 40})
    annotations += [
        {"id": 901, "image_id": 12345, "category_id": 1, "bbox": [1, 2, 3, 4]},
        {"id": 902, "category_id": 1, "bbox": [1, 2, 3, 4]},
        {"id": 904, "image_id": 1.5, "category_id": 1, "bbox": [1, 2, 3, 4]},
        "no object",
    ]
    expected |= {
        "annotation of an unknown image id": "annotation 901",
        "annotation without 'image_id'": "annotation 902",
        "annotation whose 'image_id' is unusable": "annotation 904",
        "annotation that is no JSON object": "no object",
    }
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    return document, {kind: where for kind, where in expected.items() if not kind.startswith("good")}


def test_coco(tmp_path, picture, checked):
    document, expected = coco_document(picture)
    (tmp_path / "train.json").write_text(json.dumps(document))
    settings = {"root": str(tmp_path)}
    assert_named(checked({"class_path": "vr1.data.CocoDataModule", "init_args": settings}), expected)
    assert_whole(CocoDataModule(tmp_path, bad_records="skip").build("train"))


YOLO_LINES = {
    "line that is not numbers": "0 0.5 zwei 0.1 0.1",
    "line that is neither class x y w h": "0 0.5 0.5 0.2 0.1 0.9",
    "class number without a name": "7 0.5 0.5 0.2 0.1",
    "box of zero size": "0 0.5 0.5 0 0.1",
    "box of negative size": "0 0.5 0.5 -0.1 0.1",
    "box with NaN or infinite numbers": "0 nan 0.5 0.1 0.1",
    "box entirely outside its image": "0 1.5 0.5 0.1 0.1",
    "line with a coordinate outside 0..1": "0 0.1 0.1 0.5 0.1 0.3 2",
    "box within 0..1": "0 0.001 0.001 0.001 0.001",
}


def test_yolo(tmp_path, picture, checked):
    expected = {}

    def add(kind, second=None):
        name = f"{len(expected):02d}"
        path = picture(f"train/images/{name}.png")
        lines = [" ".join(["0", *map(str, shares(box))]) for box in GOOD]
        lines[1] = lines[1] if second is None else second
        label = tmp_path / f"train/labels/{name}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text("\n".join(lines))
        expected[kind] = name
        return path

    add("good")
    for kind, line in YOLO_LINES.items():
        add(kind, line)
    for kind, spoil in FILES.items():
        spoil(add("label file without an image" if kind == "image file missing" else kind))
    (tmp_path / f"train/labels/{add('label file that is not text').stem}.txt").write_bytes(b"\xff\xfe\x00")
    shutil.copy(
        add("label file of several images"), tmp_path / f"train/images/{expected['label file of several images']}.jpg"
    )
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"names": ["cat"], "train": "train/images"}))
    del expected["good"]
    text = checked({"class_path": "vr1.data.YoloDataModule", "init_args": {"root": str(tmp_path)}})
    assert_named(text, expected)
    assert_whole(YoloDataModule(tmp_path, bad_records="skip").build("train"))


def shares(box):
    (x1, y1, x2, y2), (width, height) = box, SIZE
    return (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height


VOC_OBJECTS = {
    "object without a name": (" ", [1, 2, 3, 4]),
    "object without a box of four numbers": ("cat", [1, 2, "x", 4]),
    "box of zero size": ("cat", [3, 2, 3, 4]),
    "box of negative size": ("cat", [9, 2, 3, 4]),
    "box with NaN or infinite numbers": ("cat", ["nan", 2, 3, 4]),
    "box entirely outside its image": ("cat", [300, 2, 310, 4]),
    "box within 0..1": ("cat", [0.1, 0.2, 0.3, 0.4]),
}


def xml(name, size, objects):
    items = "".join(
        f"<object><name>{label}</name><bndbox>"
        + "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        + "</bndbox></object>"
        for label, box in objects
    )
    sizes = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return f"<annotation><filename>{name}</filename>{sizes}{items}</annotation>"


def test_voc(tmp_path, picture, checked):
    expected = {}

    def add(kind, second=None, size=SIZE, text=None):
        name = f"{len(expected):02d}"
        path = picture(f"train/{name}.png")
        objects = [("cat", GOOD[0]), second or ("cat", GOOD[1])]
        (tmp_path / f"train/{name}.xml").write_text(text or xml(f"{name}.png", size, objects))
        expected[kind] = name
        return path

    add("good")
    for kind, second in VOC_OBJECTS.items():
        add(kind, second)
    for kind, spoil in FILES.items():
        objects = [("cat", [10, 1, 40, 4]), ("cat", [50, 1, 90, 4])] if "1200" in kind else None
        text = xml(f"{len(expected):02d}.png", (1200, 4), objects) if objects else None
        spoil(add(kind, text=text))
    add("image whose size in the annotations is not that of the file", size=(90, 80))
    add("has no width and height above 0", size=None)
    add("not an xml file that can be read", text="<annotation>")
    add("names no image in <filename>", text="<annotation/>")
    add("declares a document type", text="<!DOCTYPE a><annotation/>")
    path = add("image that several xml files name")
    (tmp_path / "train" / "copy.xml").write_text(path.with_suffix(".xml").read_text())
    del expected["good"]
    text = checked({"class_path": "vr1.data.VocDataModule", "init_args": {"root": str(tmp_path)}})
    assert_named(text, expected)
    assert_whole(VocDataModule(tmp_path, bad_records="skip").build("train"))


REFERRING_LINES = {
    "line that is not JSON": "{",
    "line that is no JSON object": "[1]",
    "line without an 'image'": {"image": None},
    "line with several images": {"image": ["00.png", "00.png"]},
    "line without an expression": {"expression": None},
    "line without four numbers": {"solution": [1, 2, 3]},
    "line with several boxes": {"solution": GOOD},
    "box of zero size": {"solution": [3, 2, 3, 4]},
    "box of negative size": {"solution": [9, 2, 3, 4]},
    "box with NaN or infinite numbers": {"solution": [float("nan"), 2, 3, 4]},
    "box entirely outside its image": {"solution": [300, 2, 310, 4]},
    "box that reaches outside its image": {"solution": [1, 2, 310, 40]},
    "box within 0..1": {"solution": [0.1, 0.2, 0.3, 0.4]},
}


def test_referring(tmp_path, picture, checked):
    lines, expected = [], {}

    def add(kind, change):
        number = len(lines)
        item = {"image": f"{number:02d}.png", "expression": f"cat {number}", "solution": GOOD[0]}
        path = picture(f"images/{number:02d}.png")
        lines.append(change if isinstance(change, str) else json.dumps(item | change))
        expected[kind] = f"line {number + 1}"
        return path

    add("good", {})
    for kind, change in REFERRING_LINES.items():
        add(kind, change)
    for kind, spoil in FILES.items():
        # The size is not read from a damaged file where the line has it.
        size = {"width": 1200, "height": 4} if "1200" in kind else {"width": SIZE[0], "height": SIZE[1]}
        path = add(kind, size | ({"solution": [10, 1, 40, 4]} if "1200" in kind else {}))
        expected[kind] = path.name
        spoil(path)
    add("image that cannot be opened", {"image": "gone.png"})
    path = add("image whose size in the annotations is not that of the file", {"width": 90, "height": 80})
    expected["image whose size in the annotations is not that of the file"] = path.name
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    settings = {"images": str(tmp_path / "images"), "train": {"all": str(tmp_path / "train.jsonl")}}
    del expected["good"]
    assert_named(checked({"class_path": "vr1.data.ReferringDataModule", "init_args": settings}), expected)
    data = ReferringDataModule(tmp_path / "images", {"all": tmp_path / "train.jsonl"}, bad_records="skip")
    assert_whole(data.build("train"), objects=1)


def test_the_faults_of_the_readers_are_all_here():
    """A kind of fault that is added to a reader needs a place in one of the folders above."""
    here = Path(__file__).read_text()
    rooms = Path(__file__).parents[2] / "vr1" / "data"
    kind = re.compile(r'"((?:annotation|image|line|label file|object|box|bbox|class number) (?!ids)[^"{]{12,})"')
    for name in ("coco_objects.py", "voc.py", "yolo.py", "referring_line.py", "image_checks.py"):
        for found in kind.findall((rooms / name).read_text()):
            assert found[:22] in here, f"{name}: {found}"


def test_several_images_and_boxes_in_pixels_of_the_input(tmp_path, picture, checked):
    picture("images/crop.png", (60, 40))
    lines = []
    for number in range(3):
        picture(f"images/{number}.png")
        names = ["crop.png"] * number + [f"{number}.png"]
        lines.append({"images": names, "expression": f"cat {number}", "solution": [10 + number, 10, 50, 40]})
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = {"images": str(tmp_path / "images"), "train": {"all": str(tmp_path / "lines.jsonl")}}
    text = checked(
        {"class_path": "vr1.data.ReferringDataModule", "init_args": settings | {"frame": "input", "scene": "last"}}, 0
    )
    assert "records with several images: 2, 3 beside those that the boxes are on" in text
    assert "note: 3 boxes are read in pixels of the input that the model's processor makes of their images" in text
    assert "anomalies: none" in text
