"""A folder to predict on: what is damaged, or cannot be read, is reported and keeps no other image from its turn."""

import pytest

from vr1.data import ImageFolderDataModule
from vr1.data.image_folder import ImageFolderSource


def test_damaged_images_are_left_out_and_reported(tmp_path, picture, caplog):
    for name in ("a.png", "b.jfif", "c.png", "d.png"):
        picture(name if name != "b.jfif" else "b.jpg")
    (tmp_path / "b.jpg").rename(tmp_path / "b.jfif")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    (tmp_path / "c.png").write_bytes(b"")
    for name in ("e.heif-", "notes.txt", ".DS_Store", "f.jxl"):
        (tmp_path / name).write_bytes(b"x")
    source = ImageFolderSource(tmp_path, ["cat"])
    assert [record.origin.rpartition("/")[2] for record in source] == ["b.jfif", "d.png"]
    assert [record.image_id for record in source] == [1, 2]
    assert "image file unreadable: 2 (" in caplog.text
    assert "a.png: the image is damaged" in caplog.text
    assert "c.png: the image file is empty" in caplog.text
    assert "3 files are left out, since they cannot be read as images here: 1 .heif-, 1 .jxl, 1 .txt" in caplog.text
    assert source.image_sizes.tolist() == [[100, 80], [100, 80]]


def test_nothing_to_report(picture, tmp_path, caplog):
    picture("a.png")
    assert len(ImageFolderSource(tmp_path, ["cat"])) == 1
    assert not caplog.records


def test_no_image_that_can_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"image file unreadable: 1 \(.*a\.png: not an image"):
        ImageFolderSource(tmp_path, ["cat"])


def test_images_that_the_model_refuses_are_left_out(tmp_path, picture, encoder, caplog):
    picture("a.png")
    picture("thin.png", (2275, 10))
    data = ImageFolderDataModule(tmp_path, ["cat"])
    data.refuse_images(encoder.refusal)
    [record] = data.build("predict")
    assert record.origin.endswith("a.png")
    assert "thin.png, 2275 x 10: absolute aspect ratio must be smaller than 200" in caplog.text
