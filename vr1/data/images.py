"""Opens image files the one way the rest of the package relies on: decoded, RGB, upright.

Every fault of an image file raises one exception, `ImageError`, that names the file and how to fix it. `rotate_boxes`
maps boxes on the pixels as stored to the upright image.
"""

import io
import struct
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from vr1.errors import UserError
from vr1.types import Boxes

_KNOWN = (
    ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jxl", ".pbm",
    ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
SUFFIXES = tuple(suffix for suffix in _KNOWN if Image.registered_extensions().get(suffix) in Image.OPEN)
"""How the names of images end that this build of Pillow, with its plugins, can read."""
WHITE = (255, 255, 255)

# What Pillow's decoders let through, depending on the format, when a file is damaged.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ROTATED_90 = (5, 6, 7, 8)


class ImageError(UserError):
    """An image file that cannot be used; the message names the file and how to fix it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageHeader:
    """Size and orientation of an image file, read before any pixel is decoded.

    Attributes:
        stored_size: width and height of the pixels as stored.
        orientation: EXIF orientation, 1 to 8; 5 to 8 swap width and height.
    """

    stored_size: tuple[int, int]
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        width, height = self.stored_size
        return (height, width) if self.rotated_90 else (width, height)

    @property
    def rotated_90(self) -> bool:
        """Whether the stored image is rotated by 90 degrees."""
        return self.orientation in _ROTATED_90


def open_image(path: str | Path, background: tuple[int, int, int] = WHITE, data: bytes | None = None) -> Image.Image:
    """Decode an image file as upright RGB.

    Grayscale, palette and CMYK are converted; 16-bit samples are scaled from their full range to 8 bits (a plain
    conversion would clip nearly all of them to white); transparent pixels are blended with ``background``. Of a file
    with several frames the first is taken.

    Args:
        path: the file.
        background: RGB colour seen through transparent pixels.
        data: the bytes of the file, where it is not on disk; ``path`` then only names it in messages.

    Returns:
        A fully decoded RGB image, EXIF orientation applied.

    Raises:
        ImageError: if the file is missing, empty, no image, truncated, of zero size, too large or of a pixel type
            without a defined white.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (4, 2), 128).save(f"{folder}/gray.png")
        ...     image = open_image(f"{folder}/gray.png")
        >>> image.mode, image.size, image.getpixel((0, 0))
        ('RGB', (4, 2), (128, 128, 128))
    """
    path = Path(path)
    with _open(path) if data is None else _read(path, io.BytesIO(data)) as stored:
        try:
            stored.load()
            # Read after decoding: by then Pillow has rotated a TIFF itself, and has read EXIF that follows the pixels.
            orientation = _orientation(stored)
            image = _as_rgb(stored, path, background)
        except ImageError:
            raise
        except _DAMAGE as error:
            raise ImageError(
                f"{path}: the image is damaged or cut short ({error}); download the file again or leave it out"
            ) from error
    image = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    image.info.clear()  # a later reader that honours EXIF would rotate the image again
    return image


def read_header(path: str | Path) -> ImageHeader:
    """Read the size and orientation of an image file without decoding it.

    EXIF data that follows the pixels, which PNG allows, is not seen here.

    Raises:
        ImageError: if the file is missing, empty, no image, of zero size or too large.
    """
    path = Path(path)
    with _open(path) as image:
        if image.format == "TIFF":  # Pillow reports, and later decodes, a TIFF upright
            return ImageHeader(stored_size=image.size)
        return ImageHeader(stored_size=image.size, orientation=_orientation(image))


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of the upright image, from the header alone.

    Raises:
        ImageError: as `read_header`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (30, 20)).save(f"{folder}/a.jpg", exif=Image.Exif())
        ...     image_size(f"{folder}/a.jpg")
        (30, 20)
    """
    return read_header(path).size


def rotate_boxes(boxes: Boxes, header: ImageHeader) -> Boxes:
    """Map boxes on the pixels as stored to the upright image.

    Args:
        boxes: ``[N, 4]`` corners in pixels of the stored image.
        header: its stored size and orientation.

    Returns:
        ``[N, 4]`` ordered corners in pixels of the upright image.

    Source: EXIF 2.32, tag 0x0112.

    Example:
        >>> header = ImageHeader(stored_size=(40, 30), orientation=6)  # has to be rotated by 90 degrees clockwise
        >>> rotate_boxes(np.array([[0.0, 0.0, 10.0, 5.0]]), header).tolist()
        [[25.0, 0.0, 30.0, 10.0]]
    """
    (width, height), orientation = header.stored_size, header.orientation
    x, y = boxes[:, [0, 2]], boxes[:, [1, 3]]
    if orientation in (2, 3, 7, 8):
        x = width - x[:, ::-1]
    if orientation in (3, 4, 6, 7):
        y = height - y[:, ::-1]
    if header.rotated_90:
        x, y = y, x
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)


def is_image_name(path: Path) -> bool:
    """Whether a file is named as an image that can be read.

    Example:
        >>> is_image_name(Path("a.JFIF")), is_image_name(Path("a.txt"))
        (True, False)
    """
    return path.suffix.lower() in SUFFIXES


def list_images(folder: str | Path) -> list[Path]:
    """The image files directly in a folder, sorted by name.

    Raises:
        ImageError: if the folder is missing or holds no image file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b 2.PNG", "a.jpg", "notes.txt"):
        ...         Path(folder, name).touch()
        ...     [path.name for path in list_images(folder)]
        ['a.jpg', 'b 2.PNG']
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder of images; check the path")
    paths = [path for path in folder.iterdir() if path.is_file()]
    images = sorted(filter(is_image_name, paths), key=lambda path: path.name)
    if not images:
        raise ImageError(
            f"{folder}: no image among its {len(paths)} files; expected names ending in {', '.join(SUFFIXES)}, "
            "directly in this folder"
        )
    return images


def count_unread(paths: Iterable[Path], *, every: bool = False) -> list[str]:
    """A note on the images among files that cannot be read here, by the end of their names; empty without any.

    Args:
        paths: the files of a folder.
        every: count all files that are not read, hidden ones aside, and not only those that are named as images.

    Example:
        >>> count_unread([Path("a.jpg"), Path("b.jxl"), Path("notes.txt")])
        ['1 files are left out, since they cannot be read as images here: 1 .jxl']
    """
    left_out = Counter(
        path.suffix.lower() or "without a suffix"
        for path in paths
        if not is_image_name(path) and not path.name.startswith(".") and (every or path.suffix.lower() in _KNOWN)
    )
    if not left_out:
        return []
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(left_out.items()))
    return [f"{left_out.total()} files are left out, since they cannot be read as images here: {kinds}"]


def _open(path: Path) -> Image.Image:
    if not path.is_file():
        raise ImageError(f"{path}: no such image file; check the path or leave the record out")
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: the image file is empty (0 bytes); download it again or leave it out")
    return _read(path, path)


def _read(path: Path, file: Path | io.BytesIO) -> Image.Image:
    try:
        image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: the image is too large to decode safely ({error}); make it smaller") from error
    except _DAMAGE as error:
        raise ImageError(
            f"{path}: not an image that can be read ({error}); download it again or leave it out"
        ) from error
    if 0 in image.size:
        image.close()
        raise ImageError(f"{path}: the image has no pixels (size {image.size}); leave it out")
    return image


def _orientation(image: Image.Image) -> int:
    try:
        # The base method, since that of PNG decodes the full image to find EXIF behind the pixels.
        return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except (*_DAMAGE, TypeError):
        return 1  # damaged metadata does not make the image unusable


def _as_rgb(image: Image.Image, path: Path, background: tuple[int, int, int]) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        samples = np.asarray(image, dtype=np.int64)
        if samples.min() < 0 or samples.max() > 65535:
            raise ImageError(f"{path}: samples of 32 bits ({image.mode}) have no defined white; convert it to 8 bits")
        return Image.fromarray((samples // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError(f"{path}: floating-point samples have no defined white; convert the image to 8 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")
    return image.convert("RGB")
