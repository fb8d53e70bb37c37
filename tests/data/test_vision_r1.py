import builtins
import json
import pickle

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.shared_data import SHARED, needs_shared
from vr1.data import MixtureDataModule, SceneDataModule, Selection, VisionR1DataModule
from vr1.data.annotated import AnnotatedSource
from vr1.data.coco import coco_splits
from vr1.data.images import ImageError
from vr1.data.sampler import RepeatedBatches, TrainingLoader
from vr1.data.vision_r1 import VisionR1Source
from vr1.data.vision_r1_rows import load_table
from vr1.data.vision_r1_stream import VisionR1Stream

DETECTION = (
    "Examine the image for any objects from the category set. Report the coordinates of each detected object. "
    "The category set includes dog, person."
)


def record(**changes):
    plain = {
        "image": Image.new("RGB", (100, 80), (200, 30, 30)),
        "problem": DETECTION,
        "solution": json.dumps([["dog", [10, 20, 30, 40]], ["person", [0, 0, 100, 80]]]),
        "width": 100,
        "height": 80,
        "num_instances": 2,
        "target_id_maps": json.dumps({"dog": 0}),
    }
    return plain | changes


def table(*records):
    columns = {name: [item[name] for item in records] for name in records[0]}
    images = datasets.Dataset.from_dict(columns)
    return images.cast_column("image", datasets.Image()).cast_column("image", datasets.Image(decode=False))


@needs_shared
@pytest.mark.parametrize("form", ["parquet", "arrow", "save_to_disk", "dict", "one file"])
def test_real_records_through_every_form(form, tmp_path):
    reference = AnnotatedSource(*coco_splits(SHARED / "thermal")["valid"])
    names = ", ".join(reference.categories)
    rows = [
        record(
            image=str(SHARED / "thermal/images" / reference.table.file_names[row]),
            problem=DETECTION.replace("dog, person", names),
            solution=json.dumps([[la, box] for la, box in zip(item.labels, item.boxes_xyxy.tolist(), strict=True)]),
            width=item.image.width,
            height=item.image.height,
        )
        for row, item in ((row, reference[row]) for row in range(12))
    ]
    columns = {name: [item[name] for item in rows] for name in rows[0]}
    made = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    folder = tmp_path / "data"
    folder.mkdir()
    if form in ("parquet", "one file"):
        made.to_parquet(folder / "train-00000-of-00001.parquet")
    elif form == "arrow":
        made.save_to_disk(tmp_path / "saved")
        [file] = (tmp_path / "saved").glob("*.arrow")
        file.rename(folder / "train.arrow")
    else:
        (made if form == "save_to_disk" else datasets.DatasetDict(train=made)).save_to_disk(folder)
    path = str(next(folder.iterdir())) if form == "one file" else str(folder)
    source = VisionR1Source(load_table(path), path)
    assert len(source) == 12
    for row in range(12):
        item, expected = source[row], reference[row]
        assert item.boxes_xyxy.tolist() == expected.boxes_xyxy.tolist()
        assert (item.labels, item.categories) == (expected.labels, expected.categories)
        assert np.array_equal(item.image, expected.image)
    assert source.object_counts.tolist() == [len(reference[row].labels) for row in range(12)]


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        ("Locate the exact position of dog in the picture, if you can.", ("dog",)),
        ("Can you point out left dog in the image and provide the coordinates of its location?", ("left dog",)),
    ],
)
def test_the_family_writes_its_own_question(problem, expected, encoder):
    solution = json.dumps([["dog", [10, 20, 30, 40]]])
    [item] = VisionR1Source(table(record(problem=problem, solution=solution)), "made")
    assert (item.categories, item.labels, item.referring) == (expected, expected, "point out" in problem)
    [instruction] = encoder([item]).instructions
    assert instruction.startswith("Locate left dog, output" if item.referring else "Locate every dog in the image")
    [item] = VisionR1Source(table(record()), "made")
    assert (item.categories, item.labels) == (("dog", "person"), ("dog", "person"))


def test_nothing_to_find_is_a_record_too():
    [item] = VisionR1Source(table(record(solution="[]")), "made")
    assert (item.labels, item.boxes_xyxy.shape) == ((), (0, 4))


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"problem": "Where is it?"}, "record whose question follows no known template"),
        ({"problem": " "}, "record whose question follows no known template"),
        ({"solution": "[["}, "record whose solution is not JSON"),
        ({"solution": '{"dog": 1}'}, "record whose solution is no list"),
        ({"solution": '[["dog", [1, 2, 3]]]'}, "record with an item that is not"),
        ({"solution": '[["dog", [1, 2, 3, "four"]]]'}, "record with an item that is not"),
        ({"solution": '[["dog", [9, 2, 3, 4]]]'}, "box of negative size"),
        ({"solution": '[["dog", [1, 2, NaN, 4]]]'}, "box with NaN"),
        ({"solution": '[["cow", [1, 2, 3, 4]]]'}, "record with a label that its question does not name"),
        ({"width": 0}, "record without a width and height above 0"),
    ],
)
def test_faulty_records(changes, kind):
    made = table(record(), record(**changes), record())
    with pytest.raises(
        ValueError, match=rf"made: 1 problem\n  {kind}.*: 1 \(record 1.*\nFix the data, or set"
    ) as error:
        VisionR1Source(made, "made")
    assert "\0" not in str(error.value)
    source = VisionR1Source(made, "made", bad_records="skip")
    assert [item.image_id for item in source] == [1, 3]


def test_images_that_show_their_faults_when_decoded():
    made = table(record(width=90, height=80, solution="[]"), record())
    with pytest.raises(ImageError, match=r"made\[0\]: the image is 100 x 80, its record says 90 x 80"):
        VisionR1Source(made, "made")[0]
    assert VisionR1Source(made, "made", bad_records="skip")[0].image_id == 2
    broken = table(record(image={"bytes": b"no image", "path": None}))
    with pytest.raises(ImageError, match=r"made\[0\]: not an image that can be read"):
        VisionR1Source(broken, "made")[0]
    empty = table(record(image=None))
    with pytest.raises(ImageError, match=r"made\[0\]: has no image"):
        VisionR1Source(empty, "made")[0]


def test_the_data_module_holds_records_out(tmp_path):
    rows = [record(solution=json.dumps([["dog", [1, 1, 5, 5 + n]] for n in range(count)])) for count in range(40)]
    made = datasets.Dataset.from_dict({name: [item[name] for item in rows] for name in rows[0]})
    made.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    settings = {"path": str(tmp_path / "saved"), "val_records": 8, "seed": 5}
    data = VisionR1DataModule(**settings)
    train, val = data.build("train"), data.build("val")
    assert len(val) == 8
    assert set(train.object_counts) <= set(range(1, 31))
    assert not {item.image_id for item in train} & {item.image_id for item in val}
    everything = VisionR1DataModule(**settings, selection=Selection()).build("train")
    assert len(everything) == 32
    with pytest.raises(ValueError, match="val_records=40 of 40 records leaves none for train"):
        VisionR1DataModule(**settings | {"val_records": 40}).build("train")
    with pytest.raises(ValueError, match="val_records=-1"):
        VisionR1DataModule(**settings | {"val_records": -1})


def test_places_that_hold_no_data(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: cannot be read: no parquet or arrow file, nor"):
        load_table(str(tmp_path / "empty"))
    (tmp_path / "a.parquet").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.parquet: cannot be read \("):
        load_table(str(tmp_path / "a.parquet"))
    datasets.DatasetDict(test=table(record())).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="there is no split train, only test"):
        load_table(str(tmp_path / "saved"))
    other = datasets.Dataset.from_dict({"image": [1], "question": ["a"]})
    with pytest.raises(ValueError, match="has no column problem, solution, width, height, only image, question"):
        VisionR1Source(other, "other")


def test_no_split_is_taken_for_another(tmp_path):
    """As the hub converts a data set: a folder for each split."""
    for split, count in (("train", 3), ("test", 2)):
        (tmp_path / split).mkdir()
        table(*[record()] * count).to_parquet(tmp_path / split / "0000.parquet")
    assert [len(load_table(str(tmp_path), split)) for split in ("train", "test")] == [3, 2]
    # The given folder is no split of itself.
    assert len(load_table(str(tmp_path / "test"), "train")) == 2
    with pytest.raises(ValueError, match="there is no split validation, only train, test"):
        load_table(str(tmp_path), "validation")


def test_the_missing_library_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"reading it needs the library `datasets`; run pip install datasets"):
        load_table("somebody/something")


def numbered(folder, count=40):
    """A parquet file of records that differ in the first corner of their boxes; record n has n % 4 objects."""
    rows = [
        record(solution=json.dumps([["dog", [number, 1 + row, 60, 70]] for row in range(number % 4)]))
        for number in range(count)
    ]
    made = datasets.Dataset.from_dict({name: [item[name] for item in rows] for name in rows[0]})
    made.cast_column("image", datasets.Image()).to_parquet(folder / "train-00000-of-00001.parquet")
    return str(folder)


def content(items):
    return [(item.image_id, item.boxes_xyxy.tolist(), item.labels) for item in items]


@pytest.mark.parametrize("form", ["parquet", "save_to_disk"])
def test_a_stream_has_the_records_of_the_table(form, tmp_path):
    path = numbered(tmp_path)
    if form == "save_to_disk":
        load_table(path).save_to_disk(tmp_path / "saved")
        path = str(tmp_path / "saved")
    source = VisionR1Source(load_table(path), path)
    stream = VisionR1Stream(load_table(path, streaming=True), path, records=40, buffer_size=3)
    assert content(stream[row] for row in range(40)) == content(source)
    # Back, on, back by more than is buffered, and beyond the end of a pass.
    assert content(stream[row] for row in (7, 6, 5, 30, 2)) == content(source[row] for row in (7, 6, 5, 30, 2))
    longer = VisionR1Stream(load_table(path, streaming=True), path, records=50)
    assert content([longer[45]]) == content([source[5]])
    with pytest.raises(IndexError):
        stream[40]
    assert content([pickle.loads(pickle.dumps(stream))[3]]) == content([source[3]])


def test_a_stream_skips_what_the_limits_exclude(tmp_path):
    path = numbered(tmp_path, 12)
    stream = VisionR1Stream(load_table(path, streaming=True), path, records=6, min_objects=1, max_objects=2)
    assert [len(stream[row].labels) for row in range(6)] == [1, 2] * 3
    none = VisionR1Stream(load_table(path, streaming=True), path, records=6, min_objects=9)
    with pytest.raises(ValueError, match="no record of the stream can be used"):
        none[0]


def test_faults_of_a_stream_show_when_they_are_read(tmp_path):
    made = table(record(), record(solution="[["), record(width=99), record()).to_iterable_dataset()
    stream = VisionR1Stream(made, "made", records=4)
    assert stream[0].image_id == 1
    with pytest.raises(ValueError, match=r"made\[1\]: record whose solution is not JSON.*set bad_records: skip"):
        stream[1]
    assert stream[3].image_id == 4  # a reader that continues, as a check does, gets the others
    stream = VisionR1Stream(made, "made", records=3, bad_records="skip")
    assert [stream[row].image_id for row in (0, 1, 2)] == [
        1,
        4,
        4,
    ]  # row 1 is skipped, the image of row 2 cannot be used
    skipping = VisionR1Stream(table(record(), record(solution="[["), record()).to_iterable_dataset(), "made", 2, "skip")
    assert skipping[0].replaces == ()
    [replacement] = skipping[1].replaces
    assert (replacement.index, replacement.used) == (1, 2)
    assert replacement.error.startswith("made[1]: record whose solution is not JSON")
    other = datasets.Dataset.from_dict({"image": [1], "question": ["a"]}).to_iterable_dataset()
    with pytest.raises(ValueError, match="has no column problem"):
        VisionR1Stream(other, "other", 1)


def test_training_on_a_stream_resumes_in_the_middle(tmp_path, encoder):
    """By two workers, each of which reads the full stream, against a full epoch."""
    path = numbered(tmp_path)
    settings = {"path": path, "val_records": 4, "streaming": True, "records": 30, "batch_size": 3, "num_workers": 2}

    def loader():
        data = VisionR1DataModule(**settings, seed=1)
        source = data.build("train")
        assert len(data.build("val")) == 4
        assert len(source) == 30
        assert not data.shuffle
        return TrainingLoader(source, RepeatedBatches(30, 3, repeats=2), collate_fn=content, num_workers=2)

    uninterrupted = list(loader())
    assert uninterrupted[::2] == uninterrupted[1::2]
    seen = [item for batch in uninterrupted[::2] for item in batch]
    assert len({str(boxes) for _, boxes, _ in seen}) > 20
    assert [boxes[0][0] for _, boxes, _ in seen] != sorted(boxes[0][0] for _, boxes, _ in seen)
    assert all(boxes[0][0] >= 4 for _, boxes, _ in seen)  # those are validated on
    first = loader()
    batches = iter(first)
    before = [next(batches) for _ in range(6)]
    second = loader()
    second.load_state_dict(first.state_dict())
    assert before + list(second) == uninterrupted


def test_what_a_stream_cannot_do_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a stream does not know how many objects later records have"):
        VisionR1DataModule(str(tmp_path), streaming=True, selection=Selection(curriculum=True))
    with pytest.raises(ValueError, match=r"data\.cache_records=5: a stream is read from front to back"):
        VisionR1DataModule(str(tmp_path), streaming=True, cache_records=5)
    with pytest.raises(ValueError, match=r"set data\.records to the number"):
        VisionR1DataModule(numbered(tmp_path, 4), val_records=0, streaming=True).build("train")
    with pytest.raises(ValueError, match=r"data\.parts\.b\.streaming=true: a stream .* cannot be mixed"):
        MixtureDataModule({"a": SceneDataModule(), "b": VisionR1DataModule(str(tmp_path), streaming=True)})
