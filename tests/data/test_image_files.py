"""Names of images in every spelling that exporters and file systems make of them."""

import unicodedata

import pytest

from vr1.data.annotated import AnnotatedSource
from vr1.data.image_files import ImageFolder

NAME = "K\u00e4fer 1.png"
SPELLINGS = {
    "decomposed": unicodedata.normalize("NFD", NAME),
    "composed": unicodedata.normalize("NFC", NAME),
    "percent": "K%C3%A4fer%201.png",
    "case": "k\u00e4fer 1.PNG",
    "folder": "./" + NAME,
}


@pytest.mark.parametrize("stored", [NAME, unicodedata.normalize("NFD", NAME)], ids=["composed", "decomposed"])
@pytest.mark.parametrize("listed", SPELLINGS.values(), ids=SPELLINGS)
def test_spellings(make, document, tmp_path, stored, listed):
    make(document)
    (tmp_path / "a.png").rename(tmp_path / stored)
    document["images"][0]["file_name"] = listed
    source = make(document, images=False)
    assert source[0].image.size == (100, 80)
    respelled = [note for note in source.report.notes if "spelled differently" in note]
    assert bool(respelled) == (not (tmp_path / listed).exists())


def test_names_as_they_are_come_first(tmp_path):
    for name in ("a b.png", "a%20b.png", "c\\d.png", "E.png", "e.png"):
        (tmp_path / name).touch()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "d.png").touch()
    folder = ImageFolder(tmp_path)
    for name in ("a b.png", "a%20b.png", "c\\d.png", "c/d.png", "E.png", "e.png"):
        assert folder.find(name) == name
    assert folder.find("C/D.png") == "c/d.png"


def test_ambiguous_names_are_missing(tmp_path):
    for name in ("A.png", "a.png", "0.png"):
        (tmp_path / name).touch()
    folder = ImageFolder(tmp_path)
    assert folder.find("a.PNG") is None
    assert folder.find("train/0.png") is None
    # Two images of another machine, of which one file is here.
    found = folder.find_all(["/data/train/0.png", "/data/val/0.png"])
    assert found.names == [None, None]
    found = folder.find_all(["/data/train/0.png", "0.png", "./0.png"])
    assert found.names == [None, "0.png", "./0.png"]
    assert folder.find("/data/train/0.png") == "0.png"


def test_one_file_under_two_ids_is_one_image(make, document, tmp_path):
    make(document)
    document["images"].append(document["images"][0] | {"id": 30, "file_name": "./A.png"})
    document["annotations"] += [
        {"id": 20, "image_id": 30, "category_id": 7, "bbox": [50, 40, 20, 20]},
        # What both have alike is one object.
        {"id": 21, "image_id": 30, "category_id": 2, "bbox": [10, 20, 30, 40]},
    ]
    source = make(document, images=False)
    assert [record.image_id for record in source] == [5, 3, 9]
    assert source[0].labels == ("cat", "dog", "cat", "dog")
    assert source[0].boxes_xyxy.tolist() == [[10, 20, 40, 60], [1, 2, 4, 6], [50.5, 0, 100, 80], [50, 40, 70, 60]]
    assert source[1].labels == ("dog",)
    note = "1 image files are listed under several image ids, whose objects are merged (a.png)"
    assert note in source.report.notes


def test_one_file_in_two_sizes_is_a_fault(make, document):
    make(document)
    document["images"].append({"id": 30, "file_name": "a.png", "width": 200, "height": 160})
    document["annotations"].append({"id": 20, "image_id": 30, "category_id": 7, "bbox": [50, 40, 120, 20]})
    with pytest.raises(ValueError, match=r"under two image ids, of different sizes: 1 \(a\.png: ids 5 and 30\)"):
        make(document, images=False)
    assert [record.image_id for record in make(document, images=False, bad_records="skip")] == [3, 9]


def test_equal_objects_of_one_image_stay(make, document):
    """Only what two entries of a file have alike is written twice; what one entry repeats is its own matter."""
    document["annotations"].append(dict(document["annotations"][0]) | {"id": 90})
    make(document)
    document["images"].append(document["images"][1] | {"id": 31})
    assert make(document, images=False)[0].labels == ("cat", "dog", "cat", "cat")


def test_a_source_of_respelled_names_opens_its_images(tmp_path, make, document):
    make(document)
    document["images"][0]["file_name"] = "D:\\set\\A.PNG"
    source = make(document, images=False)
    assert isinstance(source, AnnotatedSource)
    assert source[0].origin.endswith("a.png")
    assert source[0].labels == ("cat", "dog", "cat")
