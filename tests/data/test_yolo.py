import pytest
import yaml

from tests.shared_data import SHARED, needs_shared
from vr1.data import YoloDataModule
from vr1.data.annotated import AnnotatedSource
from vr1.data.coco import coco_splits
from vr1.data.yolo import label_file, yolo_splits


@pytest.fixture
def make(tmp_path, picture):
    """A data set of two images; the labels of the first are given."""

    def write(labels, settings=None, document=None):
        picture("train/images/a.png")
        picture("train/images/b c.png", (40, 30))
        (tmp_path / "train/labels").mkdir(exist_ok=True)
        (tmp_path / "train/labels/a.txt").write_text(labels)
        document = document or {"names": ["dog", "cat"], "train": "../train/images"}
        (tmp_path / "data.yaml").write_text(yaml.safe_dump(document))
        return YoloDataModule(tmp_path, **(settings or {})).build("train")

    return write


@needs_shared
@pytest.mark.parametrize("name", ["packages", "mushrooms", "thermal"])
def test_real_data_as_its_coco_json_reads(name, tmp_path):
    """The real sets came as YOLO files; written back from their COCO json, they read as that does."""
    names = None
    for split, (annotations, images, _) in coco_splits(SHARED / name).items():
        reference = AnnotatedSource(annotations, images)
        names = names or [item["name"] for item in yaml.safe_load(annotations.read_text())["categories"]]
        for folder in ("images", "labels"):
            (tmp_path / split / folder).mkdir(parents=True)
        expected = {}
        for row in range(len(reference)):
            file = reference.table.file_names[row]
            (tmp_path / split / "images" / file).symlink_to(images / file)
            width, height = reference.table.sizes[row]
            rows = reference.table.objects_of(row)
            lines = []
            boxes = reference.table.boxes_xyxy[rows]
            for box, category in zip(boxes, reference.table.category_rows[rows], strict=True):
                x1, y1, x2, y2 = box
                shares = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
                number = names.index(reference.categories[category])
                lines.append(" ".join(map(repr, [number, *map(float, shares)])))
            if lines:
                label_file(tmp_path / split / "images" / file).write_text("\n".join(lines))
            expected[file] = boxes, [reference.categories[c] for c in reference.table.category_rows[rows]]
        (tmp_path / "data.yaml").write_text(yaml.safe_dump({"names": names, "val": f"{split}/images"}))
        source = YoloDataModule(tmp_path).build("val")
        assert len(source) == len(reference)
        for row in range(0, len(source), 4):
            record = source[row]
            boxes, labels = expected[record.origin.split(": ")[-1]]
            assert record.boxes_xyxy == pytest.approx(boxes, abs=1e-6)
            assert list(record.labels) == labels


@needs_shared
def test_the_real_yaml_of_an_export(tmp_path):
    (tmp_path / "data.yaml").write_text((SHARED / "packages/data.yaml").read_text())
    (tmp_path / "valid/images").mkdir(parents=True)
    names, places = yolo_splits(tmp_path)
    assert (names, places) == ({0: "package"}, {"valid": tmp_path / "valid/images"})


def test_boxes_polygons_and_images_without_objects(make, caplog):
    source = make("1 0.5 0.5 0.2 0.5\n\n0 0.1 0.1 0.3 0.1 0.3 0.5\n")
    first, second = source
    assert (first.labels, second.labels) == (("cat", "dog"), ())
    assert first.boxes_xyxy.round(9).tolist() == [[40, 20, 60, 60], [10, 8, 30, 40]]
    assert first.categories == ("dog", "cat")
    assert "1 lines are polygons" in caplog.text
    assert len(make("0 0.5 0.5 0.2 0.5", {"empty_images": "skip"})) == 1


def test_lists_of_images_and_names_by_number(make, tmp_path, picture):
    document = {"names": {3: "fox", 7: "owl"}, "train": "train.txt"}
    (tmp_path / "train.txt").write_text("train/images/a.png\n./train/images/b c.png\n")
    record = make("7 0.5 0.5 1 1", document=document)[0]
    assert (record.labels, record.boxes_xyxy.tolist()) == (("owl",), [[0, 0, 100, 80]])


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("1 0.5 0.5 zwei 0.1", "line that is not numbers"),
        ("1 0.5 0.5 0.2", "line that is neither class x y w h"),
        ("1 0.5 0.5 0.2 0.1 0.9", "line that is neither class x y w h"),
        ("9 0.5 0.5 0.2 0.1", "class number without a name"),
        ("0.5 0.5 0.5 0.2 0.1", "class number without a name"),
        ("1 0.5 0.5 0 0.1", "box of zero size"),
        ("1 0.5 0.5 -0.2 0.1", "box of negative size"),
        ("1 1.5 0.5 0.2 0.1", "box entirely outside"),
        ("1 nan 0.5 0.2 0.1", "box with NaN"),
        ("1 1e999 0.5 0.2 0.1", "box with NaN or infinite"),
        ("1 0.5 0.5 1.5 0.1", "line with a coordinate outside 0..1"),
        ("1 0.1 0.1 0.3 0.1 0.3 1.5", "line with a coordinate outside 0..1"),
        ("1 0.1 0.1 -0.3 0.1 0.3 0.5", "line with a coordinate outside 0..1"),
        # Keypoints of a visibility of 2, in data that do not say that they are poses.
        ("1 0.5 0.5 0.2 0.4 0.5 0.5 2 0.45 0.6 2", "line with a coordinate outside 0..1"),
    ],
)
def test_faulty_lines(make, tmp_path, line, kind):
    with pytest.raises(ValueError, match=rf"1 problem\n  {kind}.*: 1 \(.*labels/a\.txt:2: ") as error:
        make(f"1 0.5 0.5 0.1 0.1\n{line}")
    assert "bad_records: skip" in str(error.value)
    (tmp_path / "train/labels/b c.txt").write_text("0 0.5 0.5 0.5 0.5")
    # The image that has lost an object is left out, and never asked about as if it had not.
    [record] = source = make(f"1 0.5 0.5 0.1 0.1\n{line}", {"bad_records": "skip"})
    assert record.labels == ("dog",)
    note = "1 images with a faulty annotation are left out, with their 1 other objects (a.png)"
    assert note in source.report.notes


def test_files_of_windows_and_other_yaml_files(make, tmp_path):
    make("1 0.5 0.5 0.1 0.1")
    for name in ("data.yaml", "train/labels/a.txt"):
        (tmp_path / name).write_text("\ufeff" + (tmp_path / name).read_text())
    (tmp_path / "args.yaml").write_text("epochs: 3")
    assert YoloDataModule(tmp_path).build("train")[0].labels == ("cat",)


def test_an_image_of_faulty_labels_only_is_no_negative(make):
    assert len(make("1 0.5 0.5 0 0", {"bad_records": "skip", "categories": ["cat"]})) == 1


def test_damaged_files(make, tmp_path):
    make("1 0.5 0.5 0.1 0.1")
    (tmp_path / "train/labels/a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"label file that is not text: 1 \(.*a\.txt"):
        YoloDataModule(tmp_path).build("train")
    (tmp_path / "train/images/b c.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"image file unreadable: 1 \(.*b c\.png"):
        YoloDataModule(tmp_path).build("train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no yaml file; YOLO data need a data.yaml"),
        ("names: [", "not YAML"),
        ("- a", "has no 'names'"),
        ("names: []", "has no 'names'"),
        ("names: {one: cat}", "has a key that is no class number"),
        ("names: [cat]", "names no existing folder of images"),
        ("names: [cat]\ntrain: nowhere", "names no existing folder of images"),
        ("names: [no]\ntrain: empty", "the name of class 0 is False; give a text, in quotes"),
        ("names: {0: cat, 1: }\ntrain: empty", "the name of class 1 is None"),
        ("names: [cat, ' ']\ntrain: empty", "the name of class 1 is ' '"),
        ("names: [cat]\ntrain: [empty]", "train is a list; name one folder"),
        ("names: [cat]\nval: empty", "there is no train split, only valid"),
        ("names: [cat]\ntrain: empty", "has no image"),
    ],
)
def test_refuses(tmp_path, text, message):
    (tmp_path / "empty").mkdir()
    if text is not None:
        (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        YoloDataModule(tmp_path).build("train")


POSES = {
    "[2, 3]": "0.5 0.5 0.2 0.4 0.5 0.5 2 0 0 0",
    "[1, 3]": "0.5 0.5 0.2 0.4 0.5 0.5 1",
    "[2, 2]": "0.5 0.5 0.2 0.4 0.45 0.6 0.5 0.5",
    "[17, 3]": "0.5 0.5 0.2 0.4 " + " ".join(["0.9 0.9 2"] * 17),
}


@pytest.mark.parametrize("shape", POSES)
def test_poses_are_their_boxes(make, shape):
    document = {"names": ["dog", "cat"], "train": "../train/images", "kpt_shape": yaml.safe_load(shape)}
    source = make(f"1 {POSES[shape]}\n0 0.5 0.5 1 1", document=document)
    assert source[0].labels == ("cat", "dog")
    assert source[0].boxes_xyxy.round(9).tolist() == [[40, 24, 60, 56], [0, 0, 100, 80]]
    with pytest.raises(ValueError, match=r"neither class x y w h nor that and the \d+ values of kpt_shape"):
        make(f"1 {POSES[shape]} 0.5", document=document)


@pytest.mark.parametrize("shape", ["17", "[17]", "[17, 4]", "[0, 3]", "[a, 3]"])
def test_shapes_of_keypoints_that_are_none(make, shape):
    with pytest.raises(ValueError, match=r"data\.yaml: kpt_shape=.*; give \[number of keypoints, 2 or 3\]"):
        make(
            "1 0.5 0.5 0.1 0.1", document={"names": ["a"], "train": "train/images", "kpt_shape": yaml.safe_load(shape)}
        )


@pytest.mark.parametrize("points", ["0.5 0.5 0.45 0.6", "0.5 0.5 1 0.45 0.6 0 0 0 0 0.55 0.4 1"])
def test_poses_that_nothing_declares_are_refused(make, points):
    with pytest.raises(ValueError, match=r"as of a pose: set kpt_shape in data\.yaml"):
        make(f"1 0.5 0.5 0.2 0.4 {points}\n" * 4)
    # One polygon that is none of them shows that all are polygons.
    count = len(points.split()) // 2
    other = " ".join(["0.1 0.1 0.3 0.1 0.3 0.5", *["0.2 0.6"] * (count - 1)])
    assert len(make(f"1 0.5 0.5 0.2 0.4 {points}\n" * 4 + f"1 {other}")[0].labels) == 5


def test_rotated_boxes_are_no_poses(make):
    lines = [f"1 0.{n} 0.1 0.{n + 2} 0.1 0.{n + 2} 0.4 0.{n} 0.4" for n in range(1, 7)]
    assert len(make("\n".join(lines))[0].labels) == 6


def test_labels_whose_image_is_gone(make, tmp_path):
    make("1 0.5 0.5 0.1 0.1")
    (tmp_path / "train/labels/classes.txt").write_text("dog\ncat\n")
    (tmp_path / "train/labels/gone.txt").write_text("1 0.5 0.5 0.1 0.1")
    (tmp_path / "train/labels/empty.txt").write_text("")
    with pytest.raises(ValueError, match=r"label file without an image: 1 \(.*labels/gone\.txt\)"):
        YoloDataModule(tmp_path).build("train")
    assert len(YoloDataModule(tmp_path, bad_records="skip").build("train")) == 2


def test_one_label_file_for_two_images(make, tmp_path, picture):
    make("1 0.5 0.5 0.1 0.1")
    (tmp_path / "train/labels/b c.txt").write_text("0 0.5 0.5 0.1 0.1")
    picture("train/images/a.jpg")
    with pytest.raises(ValueError, match=r"label file of several images: 2 \(.*a\.txt: a\.jpg and another"):
        YoloDataModule(tmp_path).build("train")
    [record] = YoloDataModule(tmp_path, bad_records="skip").build("train")
    assert record.labels == ("dog",)


def test_an_image_that_a_list_names_twice_is_one(make, tmp_path):
    (tmp_path / "train.txt").write_text("train/images/a.png\n./train/images/a.png\ntrain/images/b c.png\n")
    source = make("1 0.5 0.5 0.1 0.1", document={"names": ["dog", "cat"], "train": "train.txt"})
    assert [len(record.labels) for record in source] == [1, 0]
    assert any("name an image again" in note for note in source.report.notes)


def test_images_of_other_names_are_read_or_counted(make, tmp_path, picture):
    picture("train/images/a.png").rename(tmp_path / "train/images/c.JFIF")
    (tmp_path / "train/images/d.jxl").write_bytes(b"no image for Pillow")
    (tmp_path / "train/images/notes.md").write_text("no image at all")
    source = make("1 0.5 0.5 0.1 0.1")
    assert [record.origin.split(": ")[-1] for record in source] == ["a.png", "b c.png", "c.JFIF"]
    assert "1 files are left out, since they cannot be read as images here: 1 .jxl" in source.report.notes


MACHINES = {
    "drive": {"train": "C:\\Users\\ann\\set\\train\\images"},
    "root": {"train": "/content/set/train/images"},
    "path": {"path": "/content/set", "train": "train/images"},
    "path and root": {"path": "D:/set", "train": "/content/set/train/images"},
    "up": {"train": "../set/train/images"},
    "backslashes": {"train": "train\\images"},
}


@pytest.mark.parametrize("paths", MACHINES.values(), ids=MACHINES)
def test_paths_of_another_machine(make, paths):
    source = make("1 0.5 0.5 0.1 0.1", document={"names": ["dog", "cat"], **paths})
    assert [len(record.labels) for record in source] == [1, 0]
    if "set" in paths["train"]:
        assert any("does not exist" in note and "beside the file is read" in note for note in source.report.notes)


def test_lists_of_another_machine(make, tmp_path):
    (tmp_path / "train.txt").write_text("/content/set/train/images/a.png\nE:\\set\\train\\images\\b c.png\n")
    source = make("1 0.5 0.5 0.1 0.1", document={"names": ["dog", "cat"], "train": "/content/set/train.txt"})
    assert [len(record.labels) for record in source] == [1, 0]


def test_two_splits_of_another_machine_never_share_a_folder(make):
    document = {"names": ["dog"], "train": "/content/images", "val": "/content/val/train/images"}
    assert make("0 0.5 0.5 0.1 0.1", document=document | {"train": "train/images", "val": "/x/val/images"})
    document = {"names": ["dog"], "train": "/content/a/train/images", "val": "/content/b/train/images"}
    with pytest.raises(ValueError, match=r"the paths of .* do not exist, and beside the file both lead to"):
        make("0 0.5 0.5 0.1 0.1", document=document)
