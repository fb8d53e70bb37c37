"""Answers that are nearly boxes, and must not become some."""

import pytest

from vr1.families import Qwen25VL

BOX = '{"bbox_2d": [1, 2, 3, 4], "label": "cat"}'


@pytest.mark.parametrize(
    "written",
    [
        "[true, 1, 2, 3]",
        "[1, 2, 3, false]",
        "[true, false, true, false]",
        "[1, 2, 3]",
        "[1, 2, 3, 4, 5]",
        "[true, 1, 2, 3, 4]",
        "[1, 2, 3, null]",
        "[1, 2, 3, NaN]",
        "[1, 2, 3, Infinity]",
        '[1, 2, 3, "x"]',
        "[1, 2, 3, 1e999]",
        "{}",
        '""',
        "7",
    ],
)
def test_what_is_no_box_is_none(written):
    for text in (f'[{{"bbox_2d": {written}, "label": "cat"}}]', f'see: [{{"bbox_2d": {written}, "label": "cat"}}]'):
        read = Qwen25VL().read(text)
        assert len(read.boxes) == 0, text
        assert read.problems or not read.follows_template, text
    read = Qwen25VL().read(f'[{BOX}, {{"bbox_2d": {written}, "label": "cat"}}]')
    assert read.boxes.tolist() == [[1, 2, 3, 4]]
    assert read.labels == ("cat",)


@pytest.mark.parametrize(
    "tail",
    [
        '{"bbox_2d": [5, 6, 7, 8], "label": "dog"',
        '{"bbox_2d": [5, 6, 7, 8], "label": "dog" and that is all',
        '{"bbox_2d": [5, 6, 7, 8]',
        '{"bbox_2d": [5, 6, 7, 8',
        '{"bbox_2d": [5, 6,',
        '{"bbox_2d": [[5, 6, 7, 8], [5, 6',
        '{"bbox_2d": [5, 6, 7, 8], "label": "do',
        "{",
    ],
)
def test_an_object_that_is_not_closed_is_no_box(tail):
    read = Qwen25VL().read(f"[{BOX}, {tail}")
    assert read.boxes.tolist() == [[1, 2, 3, 4]]
    assert not read.follows_template


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("[[1, 2, 3, 4], [5, 6, 7, 8] and no more", [[1, 2, 3, 4], [5, 6, 7, 8]]),
        ("[[1, 2, 3, 4], [5, 6, 7", [[1, 2, 3, 4]]),
        ("[1, 2, 3, 4] and then words", [[1, 2, 3, 4]]),
        ("the boxes [1, 2, 3, 4", []),
    ],
)
def test_lists_that_are_not_closed(text, boxes):
    assert Qwen25VL().read(text).boxes.tolist() == boxes
