import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from tests.shared_data import SHARED, needs_shared
from vr1.data.images import ImageError, ImageHeader, image_size, list_images, open_image, read_header, rotate_boxes


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[ExifTags.Base.Orientation] = orientation
    return data


@pytest.fixture
def gradient() -> Image.Image:
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, 40)
    pixels[..., 1] = np.linspace(0, 255, 30)[:, None]
    return Image.fromarray(pixels)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied_as_pillow_does(tmp_path, gradient, suffix, orientation):
    path = tmp_path / f"a.{suffix}"
    settings = {"quality": 95} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    gradient.save(path, exif=exif(orientation), **settings)

    expected = gradient.copy()
    expected.getexif()[ExifTags.Base.Orientation] = orientation
    expected = ImageOps.exif_transpose(expected)
    image = open_image(path)

    assert image.size == expected.size == image_size(path)
    assert np.array_equal(ImageOps.exif_transpose(image), image), "turned only once"
    difference = np.abs(np.asarray(image, float) - np.asarray(expected, float)).mean()
    assert difference < (3 if suffix == "jpg" else 1e-9)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_the_pixels(tmp_path, orientation):
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[4:11, 2:20] = 255
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=exif(orientation))

    box = rotate_boxes(np.array([[2.0, 4.0, 20.0, 11.0]]), read_header(path))[0]

    rows, columns = np.nonzero(np.asarray(open_image(path))[..., 0])
    assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_no_boxes_turn_to_no_boxes():
    assert rotate_boxes(np.zeros((0, 4)), ImageHeader(stored_size=(4, 3), orientation=6)).shape == (0, 4)


def test_png_orientation_behind_the_pixels_is_applied(tmp_path, gradient):
    path = tmp_path / "late.png"
    gradient.save(path)
    body = exif(6).tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    data = path.read_bytes()
    end = data.index(b"IEND") - 4
    path.write_bytes(data[:end] + chunk + data[end:])
    assert open_image(path).size == (30, 40)


def test_damaged_metadata_leaves_the_picture_usable(tmp_path, gradient):
    path = tmp_path / "a.png"
    gradient.save(path, exif=b"Exif\0\0MM\0*garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert open_image(path).size == (40, 30)


@pytest.mark.parametrize(("mode", "colour", "expected"), [("L", 77, 77), ("1", 1, 255), ("LA", (77, 255), 77)])
def test_gray_modes(tmp_path, mode, colour, expected):
    path = tmp_path / "a.png"
    Image.new(mode, (3, 2), colour).save(path)
    assert open_image(path).getpixel((1, 1)) == (expected,) * 3


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    samples = np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(samples).save(tmp_path / name)
        assert np.asarray(open_image(tmp_path / name))[..., 0].tolist() == [[0, 100], [200, 255]]


def test_transparency_is_laid_over_the_stated_colour(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (2, 2), (200, 0, 0, 255)).save(tmp_path / "solid.png")
    assert open_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    assert open_image(tmp_path / "clear.png", background=(1, 2, 3)).getpixel((0, 0)) == (1, 2, 3)
    assert open_image(tmp_path / "solid.png").getpixel((0, 0)) == (200, 0, 0)


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert open_image(tmp_path / "plain.png").getpixel((1, 0)) == (40, 50, 60)
    assert open_image(tmp_path / "clear.png").getpixel((0, 0)) == (10, 20, 30)
    assert open_image(tmp_path / "clear.png").getpixel((1, 0)) == (255, 255, 255)


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = open_image(tmp_path / "a.jpg").getpixel((4, 4))
    assert red > 250
    assert green < 5
    assert blue < 5


def test_missing_file(tmp_path):
    for read in (open_image, image_size):
        with pytest.raises(ImageError, match=r"gone\.jpg: no such image file; check the path"):
            read(tmp_path / "gone.jpg")
        with pytest.raises(ImageError, match="no such image file"):
            read(tmp_path)


def test_empty_file(tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ImageError, match=r"a\.jpg: the image file is empty \(0 bytes\); download it again"):
        open_image(tmp_path / "a.jpg")


def test_no_image(tmp_path):
    (tmp_path / "a.jpg").write_text("<html>not found</html>")
    with pytest.raises(ImageError, match=r"a\.jpg: not an image that can be read .*download it again"):
        image_size(tmp_path / "a.jpg")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp", "gif"])
def test_every_way_to_cut_a_file_short(tmp_path, suffix):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (60, 60, 3), np.uint8)).save(tmp_path / f"complete.{suffix}")
    data = (tmp_path / f"complete.{suffix}").read_bytes()
    path = tmp_path / f"a.{suffix}"
    for length in [1, 4, 10, 20, 40, 100, len(data) // 2]:
        path.write_bytes(data[:length])
        with pytest.raises(ImageError, match=rf"a\.{suffix}: .*download"):
            open_image(path)


def test_no_pixels(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P6 0 5 255\n")
    with pytest.raises(ImageError, match=r"a\.ppm"):
        open_image(tmp_path / "a.ppm")


def test_decompression_bomb(tmp_path, monkeypatch, gradient):
    gradient.save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=r"a\.png: the image is too large to decode safely .*make it smaller"):
        open_image(tmp_path / "a.png")


def test_samples_without_a_white(tmp_path):
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "f.tif")
    Image.fromarray(np.full((2, 2), 70000, np.int32)).save(tmp_path / "i.tif")
    for name in ("f.tif", "i.tif"):
        with pytest.raises(ImageError, match=f"{name}: .*no defined white; convert"):
            open_image(tmp_path / name)


def test_list_images_errors(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ImageError, match=r"no image among its 1 files; expected names ending in .*\.jpg"):
        list_images(tmp_path)
    with pytest.raises(ImageError, match="no such folder"):
        list_images(tmp_path / "gone")


@needs_shared
def test_real_images_are_rgb():
    for name in ("raccoon-150.jpg", "raccoon-152.jpg", "raccoon-161.jpg"):
        path = SHARED / "raccoon" / "images" / name
        with Image.open(path) as stored:
            assert stored.mode == "L"
            size = stored.size
        image = open_image(path)
        assert (image.mode, image.size) == ("RGB", size)
    thermal = list_images(SHARED / "thermal" / "images")
    assert len(thermal) == 97
    assert sum(" " in path.name for path in thermal) > 10
    assert image_size(thermal[0]) == (416, 416)


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".avif", ".webp", ".pgm"])
def test_images_of_every_suffix_that_pillow_reads(tmp_path, suffix):
    kind = {".jfif": "JPEG", ".JPE": "JPEG", ".avif": "AVIF", ".webp": "WEBP", ".pgm": "PPM"}[suffix]
    if kind not in Image.SAVE:
        # A Pillow that was built without this format reads none either, and such a file is not taken for an image.
        (tmp_path / f"a{suffix}").write_bytes(b"of an unknown format")
        with pytest.raises(ValueError, match="no image among its 1 files"):
            list_images(tmp_path)
        return
    Image.new("L" if suffix == ".pgm" else "RGB", (30, 20), 90).save(tmp_path / f"a{suffix}", format=kind)
    [path] = list_images(tmp_path)
    assert open_image(path).size == (30, 20)
