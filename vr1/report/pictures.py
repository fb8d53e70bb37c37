"""Galleries made small enough to travel inside the page."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

Gallery = tuple[int, Path]
# Widths and JPEG qualities to try, from the best on.
_TRIES = ((1500, 82), (1200, 78), (1000, 72), (800, 66))
_LEAST = 5


def embedded(galleries: Sequence[Gallery], budget: int, most: int = 40) -> list[tuple[int, str]]:
    """Pictures as ``data:`` addresses, of which the first and the last are always among them.

    Args:
        galleries: (optimizer step, picture) in order.
        budget: bytes that all addresses together may have.
        most: how many pictures are kept at most, evenly spread.

    Returns:
        (optimizer step, address); fewer and smaller pictures where the budget asks for it.

    Raises:
        ValueError: if a picture is damaged.
    """
    kept = _spread(galleries, most)
    while kept:
        for width, quality in _TRIES:
            found = [(step, _address(path, width, quality)) for step, path in kept]
            if sum(len(address) for _, address in found) <= budget:
                return found
            if len(kept) > _LEAST:
                break
        if len(kept) == 1:
            return []
        size = sum(len(address) for _, address in found)
        # One step to about what fits, rather than many that each encode all pictures again.
        kept = _spread(kept, max(1, min(len(kept) - 1, len(kept) * budget // size)))
    return []


def _spread(galleries: Sequence[Gallery], most: int) -> list[Gallery]:
    if len(galleries) <= most:
        return list(galleries)
    if most == 1:
        return [galleries[-1]]
    last = len(galleries) - 1
    return [galleries[round(index * last / (most - 1))] for index in range(most)]


def _address(path: Path, width: int, quality: int) -> str:
    buffer = io.BytesIO()
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error}); remove it to go on without") from None
    if small.width > width:
        small = small.resize((width, round(small.height * width / small.width)), Image.Resampling.LANCZOS)
    small.save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
