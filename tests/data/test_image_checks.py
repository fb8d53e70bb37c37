"""Missing images, and images of another size than the annotations say."""

import re

import pytest

from vr1.data.annotated import AnnotatedSource


def test_missing_images(make, document, tmp_path):
    make(document)
    (tmp_path / "b 2.png").unlink()
    document["images"][2]["file_name"] = "nowhere/empty.png"
    expected = re.escape("image file missing: 2 (b 2.png (id 3); nowhere/empty.png (id 9))")
    with pytest.raises(ValueError, match=expected):
        make(document, images=False)
    assert [record.image_id for record in make(document, images=False, bad_records="skip")] == [5]
    with pytest.raises(ValueError, match=r"images=.*gone: no such folder"):
        AnnotatedSource(tmp_path / "train.json", tmp_path / "gone")


def test_images_in_folders_of_their_own(make, document):
    document["images"][0]["file_name"] = "deep/a.png"
    assert make(document)[0].image.size == (100, 80)


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
