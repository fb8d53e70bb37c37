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
    ],
)
def test_faulty_lines(make, line, kind):
    with pytest.raises(ValueError, match=rf"1 problem\n  {kind}.*: 1 \(.*labels/a\.txt:2: ") as error:
        make(f"1 0.5 0.5 0.1 0.1\n{line}")
    assert "bad_records: skip" in str(error.value)
    assert make(f"1 0.5 0.5 0.1 0.1\n{line}", {"bad_records": "skip"})[0].labels == ("cat",)


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
