"""Tiles (one prediction with its caption) and sheets (tiles in rows under a title)."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from vr1.drawing.boxes import FAIR, GOOD, POOR, TRUTH, Colour, draw_prediction
from vr1.drawing.fonts import font_for, shorten
from vr1.errors import UserError
from vr1.types import Prediction

INK: Colour = (33, 37, 41)
FAINT: Colour = (110, 118, 126)
PAPER: Colour = (255, 255, 255)
BACKGROUND: Colour = (241, 243, 245)
MARGIN = 16
# (colour, dashed, meaning)
LEGEND: tuple[tuple[Colour, bool, str], ...] = (
    (TRUTH, True, "ground truth"),
    (GOOD, False, "overlap ≥ 0.75"),
    (FAIR, False, "overlap ≥ 0.5"),
    (POOR, False, "wrong"),
)
_SHORT = {"dual_format": "format", "total": "reward"}


def draw_tile(
    prediction: Prediction, side: int = 360, *, judge: bool = True, problems: Sequence[str] = ()
) -> Image.Image:
    """One prediction as a captioned tile: the requested categories, the picture, the reward terms, the box count.

    Args:
        prediction: one completion with its record, detections and match.
        side: width of the tile and height of its picture, in pixels.
        judge: as in :func:`~vr1.drawing.boxes.draw_prediction`; False leaves the rewards out of the caption.
        problems: as in :func:`~vr1.drawing.boxes.draw_prediction`; the caption counts the boxes with a problem.

    Returns:
        A tile whose size depends on ``side`` and ``judge`` alone, so that tiles line up.

    Example:
        >>> from vr1.drawing.boxes import example_prediction
        >>> draw_tile(example_prediction(), 360).size == draw_tile(example_prediction(empty=True), 360).size
        True
    """
    size = max(10, round(side / 27))
    lines = _caption(prediction, judge, sum(map(bool, problems)))
    step = round(size * 1.5)
    tile = Image.new("RGB", (side, side + step * (len(lines) + 1)), PAPER)
    draw = ImageDraw.Draw(tile)
    question = ", ".join(prediction.record.categories) or prediction.instruction
    _write(draw, (0, step // 2), question, size, FAINT, side)
    draw.rectangle((0, step, side - 1, step + side - 1), fill=BACKGROUND)
    picture = draw_prediction(prediction, side, judge=judge, problems=problems)
    tile.paste(picture, ((side - picture.width) // 2, step + (side - picture.height) // 2))
    for index, (text, colour, bold) in enumerate(lines):
        _write(draw, (0, side + step * (index + 1) + step // 2 + 2), text, size, colour, side, bold=bold)
    return tile


def draw_grid(
    tiles: Sequence[Image.Image], title: str = "", *, columns: int | None = None, legend: bool = True
) -> Image.Image:
    """Arrange tiles in rows under a title.

    Args:
        tiles: at least one picture; the largest sets the size of a cell.
        title: written above the tiles, shortened where it does not fit.
        columns: tiles per row; None chooses a number that makes a landscape sheet.
        legend: explain the colours of boxes drawn with ``judge``.

    Returns:
        An RGB picture; its ``info["tiles"]`` has the corners of each tile in pixels.

    Raises:
        UserError: ``tiles`` is empty.

    Example:
        >>> draw_grid([Image.new("RGB", (100, 100))] * 3, columns=2, legend=False).size
        (248, 248)
    """
    if not tiles:
        raise UserError("tiles is empty: a sheet needs at least one tile")
    columns = min(columns or max(1, math.ceil(math.sqrt(len(tiles) * 1.6))), len(tiles))
    width, height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    rows = math.ceil(len(tiles) / columns)
    sheet_width = MARGIN + columns * (width + MARGIN)
    header, top = _header(sheet_width, title, legend)
    sheet = Image.new("RGB", (sheet_width, top + rows * (height + MARGIN)), PAPER)
    sheet.paste(header, (0, 0))
    corners = []
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        left, upper = MARGIN + column * (width + MARGIN), top + row * (height + MARGIN)
        sheet.paste(tile, (left, upper))
        corners.append((left, upper, left + tile.width, upper + tile.height))
    sheet.info["tiles"] = corners
    return sheet


def _header(width: int, title: str, legend: bool) -> tuple[Image.Image, int]:
    """Title on the left; legend on the right, or below where both do not fit on one line."""
    size = max(12, min(22, width // 40))
    small = max(10, round(size * 0.75))
    inner = width - 2 * MARGIN
    legend_width = _legend_width(small) if legend else 0
    while legend_width > inner and small > 6:
        small -= 1
        legend_width = _legend_width(small)
    title_width = font_for(title, size, bold=True).getlength(title) if title else 0
    one_line = title_width + legend_width + MARGIN <= inner or not title
    line = round(size * 1.7)
    lines = (bool(title) or legend) + (not one_line and legend)
    height = MARGIN + line * lines if lines else MARGIN
    header = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(header)
    _write(draw, (MARGIN, MARGIN // 2 + line // 2), title, size, INK, inner, bold=True)
    if legend:
        x = width - MARGIN - legend_width if one_line and title else MARGIN
        for item in LEGEND:
            x += _legend_item(draw, (x, MARGIN // 2 + line * lines - line // 2), item, small)
    return header, height


def _legend_width(size: int) -> int:
    return sum(_legend_item(None, (0, 0), item, size) for item in LEGEND) - size


def _legend_item(
    draw: ImageDraw.ImageDraw | None, at: tuple[int, int], item: tuple[Colour, bool, str], size: int
) -> int:
    """Draw one entry of the legend and return its width in pixels; without ``draw`` only measure it."""
    colour, dashed, text = item
    font = font_for(text, size)
    swatch = size * 2
    if draw is not None:
        x, y = at
        for part in range(0, swatch, size // 2):
            if not dashed or (part // (size // 2)) % 2 == 0:
                draw.rectangle((x + part, y - 2, x + part + size // 2 - 1, y + 1), fill=colour)
        draw.text((x + swatch + size // 2, y), text, INK, font, "lm")
    return swatch + round(font.getlength(text)) + size * 2


def _caption(prediction: Prediction, judge: bool, problems: int) -> list[tuple[str, Colour, bool]]:
    """Lines below the picture: (text, colour, bold)."""
    if not judge:
        return [_counts(prediction, judge, problems)]
    terms = dict(prediction.rewards)
    total = terms.pop("total", sum(terms.values()))
    return [
        (f"reward {total:.2f}", INK, True),
        (" · ".join(f"{_SHORT.get(name, name)} {value:.2f}" for name, value in terms.items()), INK, False),
        _counts(prediction, judge, problems),
    ]


def _counts(prediction: Prediction, judge: bool, problems: int) -> tuple[str, Colour, bool]:
    """The number of boxes; where no box could be read from the completion, the beginning of the completion."""
    count = len(prediction.detections)
    if not prediction.detections.valid and not count:
        return f"unreadable: {prediction.completion}", POOR, False
    text = f"{count} box" + ("" if count == 1 else "es")
    if judge:
        text += f" for {prediction.match.num_targets} object" + ("" if prediction.match.num_targets == 1 else "s")
        if prediction.match.overlap.size:
            text += f" · mean overlap {float(np.mean(prediction.match.overlap)):.2f}"
    if problems:
        return text + f" · {problems} with a problem", POOR, False
    if not prediction.detections.valid:
        return text + " · invalid", POOR, False
    return text, FAINT, False


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    size: int,
    colour: Colour,
    width: int,
    *,
    bold: bool = False,
) -> None:
    font = font_for(text, size, bold=bold)
    draw.text(at, shorten(text, font, width), colour, font, "lm")
