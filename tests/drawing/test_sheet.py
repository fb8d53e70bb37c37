"""Tiles, sheets and texts: their sizes, and that every tile is in its place."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.drawing.predictions import with_boxes
from vr1.drawing import draw_grid, draw_tile
from vr1.drawing.boxes import example_prediction
from vr1.drawing.fonts import font_for, shorten


def test_tiles_have_one_size_whatever_they_show():
    many = with_boxes(np.random.default_rng(0).uniform(0, 200, (100, 4)), ["a very long label " * 20] * 100)
    odd = [with_boxes([], (), size=size) for size in ((900, 20), (20, 900), (1, 1))]
    tiles = [
        draw_tile(prediction, 200) for prediction in (example_prediction(), example_prediction(empty=True), many, *odd)
    ]
    assert len({tile.size for tile in tiles}) == 1
    assert tiles[0].width == 200


def test_an_unreadable_answer_of_any_length_and_script_fits():
    prediction = replace(example_prediction(empty=True), completion="猫\n\x00ﷺ👩‍👩‍👧 \u202e" * 100_000)
    assert draw_tile(prediction, 200).size == draw_tile(example_prediction(), 200).size


def test_the_grid_places_every_tile():
    shades = [(0, 10 * index, 200) for index in range(7)]
    sheet = draw_grid([Image.new("RGB", (50, 40), shade) for shade in shades], "seven", columns=3)
    assert sheet.width == 16 + 3 * (50 + 16)
    pixels = np.asarray(sheet)
    for shade in shades:
        assert (pixels == shade).all(axis=-1).sum() == 50 * 40


def test_a_grid_with_a_title_too_long_keeps_its_width():
    sheet = draw_grid([Image.new("RGB", (100, 100))], "long " * 200)
    assert sheet.width == 132
    with pytest.raises(ValueError, match="tiles is empty"):
        draw_grid([])


def test_shorten_fits_the_width():
    font = font_for("x", 12)
    for width in (0, 5, 30, 100):
        text = shorten("many words\nin a row", font, width)
        assert font.getlength(text) <= max(width, font.getlength("…"))
        assert "\n" not in text
