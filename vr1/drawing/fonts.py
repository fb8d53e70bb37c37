"""A font for any text: the font that matplotlib ships, or an installed one where that lacks a character."""

from functools import lru_cache
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

ELLIPSIS = "…"

# DejaVu Sans covers Latin, Greek, Cyrillic, Arabic and most symbols, but no East Asian script.
_FALLBACKS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Arial Unicode MS",
    "Noto Sans KR",
    "Noto Sans Devanagari",
)


def font_for(text: str, size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """A font with every character of a text.

    Args:
        text: what is going to be written.
        size: em height in pixels.
        bold: take the bold face of the shipped font.

    Returns:
        The shipped font, or an installed font where the shipped one lacks a character. Where no font has them all, the
        shipped font again; missing characters then show as empty boxes.

    Example:
        >>> font_for("ναός", 12).size
        12
    """
    shipped = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    for path in (str(shipped), *_installed()) if not text.isascii() else (str(shipped),):
        if text.isascii() or _has_all(path, frozenset(text)):
            return _load(path, size)
    return _load(str(shipped), size)


def shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Cut a text, on one line, to at most ``width`` pixels, and mark the cut with an ellipsis.

    Args:
        text: any text; line breaks become blanks.
        font: the font in which it is going to be written.
        width: in pixels.

    Example:
        >>> font = font_for("", 12)
        >>> shorten("a long story", font, 40), shorten("short", font, 400)
        ('a lo…', 'short')
    """
    # A completion can have thousands of characters, and measuring takes time for each; no tile has room for 400.
    text = " ".join(text[:1000].split())[:400]
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle].rstrip() + ELLIPSIS) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + ELLIPSIS


@lru_cache(maxsize=64)
def _load(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@lru_cache(maxsize=1)
def _installed() -> tuple[str, ...]:
    paths = {font.name: font.fname for font in font_manager.fontManager.ttflist}
    return tuple(paths[name] for name in _FALLBACKS if name in paths)


@lru_cache(maxsize=1024)
def _has_all(path: str, characters: frozenset[str]) -> bool:
    face = FT2Font(path)
    return all(face.get_char_index(ord(character)) for character in characters if not character.isspace())
