"""Pictures are asserted by their pixels: colours at box edges, sizes of tiles and sheets."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vr1.drawing import draw_grid, draw_prediction, draw_tile
from vr1.drawing.boxes import FAIR, GOOD, PALETTE, POOR, TRUTH, example_prediction, overlap_colour, resize
from vr1.drawing.fonts import font_for, shorten
from vr1.types import as_boxes


def with_boxes(boxes, labels, *, matched=(), overlap=(), size=(200, 160), truth=()):
    prediction = example_prediction()
    truth = as_boxes(truth)
    record = replace(
        prediction.record,
        image=Image.new("RGB", size, (128, 128, 128)),
        boxes_xyxy=truth,
        labels=("thing",) * len(truth),
        areas=np.ones(len(truth)),
        crowd=np.zeros(len(truth), bool),
    )
    detections = replace(
        prediction.detections, boxes_xyxy=as_boxes(boxes), labels=tuple(labels), scores=np.full(len(labels), 0.99)
    )
    match = replace(
        prediction.match,
        predicted=np.asarray(matched, np.int64),
        target=np.arange(len(matched)),
        overlap=np.asarray(overlap, np.float64),
        num_predicted=len(labels),
        num_targets=len(truth),
        detections=detections,
    )
    return replace(prediction, record=record, detections=detections, match=match)


def colours(picture):
    return {tuple(colour) for colour in np.asarray(picture).reshape(-1, 3).tolist()}


def test_box_edges_have_the_colour_of_their_overlap():
    boxes = [[20, 100, 60, 140], [80, 100, 120, 140], [140, 100, 180, 140]]
    prediction = with_boxes(boxes, "abc", matched=[0, 1], overlap=[0.9, 0.6], truth=[[0, 0, 5, 5]] * 2)
    picture = draw_prediction(prediction)
    assert picture.size == (200, 160)
    for box, colour in zip(boxes, (GOOD, FAIR, POOR), strict=True):
        x1, y1, x2, y2 = box
        for corner in ((x1, y1 + 20), (x2, y1 + 20), (x1 + 20, y2), (x2, y2)):
            assert picture.getpixel(corner) == colour
        assert picture.getpixel((x1 + 20, y1 + 20)) == (128, 128, 128)


def test_boxes_scale_with_the_picture():
    prediction = with_boxes([[20, 100, 60, 140]], "a", matched=[0], overlap=[0.9], truth=[[150, 10, 180, 40]])
    picture = draw_prediction(prediction, 400)
    assert picture.size == (400, 320)
    assert picture.getpixel((40, 240)) == GOOD


def test_truth_is_dashed_on_every_side_of_a_square():
    picture = draw_prediction(with_boxes([], (), truth=[[100, 60, 180, 140]]), judge=True)
    flat = [[picture.getpixel((x, y)) for x in range(100, 181)] for y in (60, 140)]
    upright = [[picture.getpixel((x, y)) for y in range(60, 141)] for x in (100, 180)]
    for line in flat + upright:
        assert 0.3 < line.count(TRUTH) / len(line) < 0.9


def test_crowd_regions_are_no_truth():
    prediction = with_boxes([], (), truth=[[100, 60, 180, 140]])
    crowd = replace(prediction, record=replace(prediction.record, crowd=np.ones(1, bool)))
    assert TRUTH in colours(draw_prediction(prediction))
    assert colours(draw_prediction(crowd)) == {(128, 128, 128)}


def test_without_judgement_boxes_are_coloured_by_label():
    prediction = with_boxes(
        [[20, 100, 60, 140], [80, 100, 120, 140]], ["red circle", "unheard of"], truth=[[1, 1, 50, 50]]
    )
    picture = draw_prediction(prediction, judge=False)
    assert picture.getpixel((20, 120)) == PALETTE[0]
    assert picture.getpixel((80, 120)) == PALETTE[3]
    assert FAIR not in colours(picture)


@pytest.mark.parametrize(
    "box",
    [
        [np.nan, 0, 10, 10],
        [np.inf, 0, np.inf, 10],
        [-1e30, -5, 1e30, 1e9],
        [50, 50, 50, 50],
        [90, 90, 10, 10],
        [0, 0, 199, 159],
    ],
)
def test_any_box_a_model_writes_can_be_drawn(box):
    picture = draw_prediction(with_boxes([box], ["x" * 10_000], truth=[[0, 0, 1, 1]]), 360)
    assert picture.size == (360, 288)


def test_the_image_itself_is_left_alone():
    prediction = example_prediction()
    before = prediction.record.image.tobytes()
    draw_prediction(prediction)
    assert prediction.record.image.tobytes() == before


def test_small_images_are_enlarged_crisply():
    image = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).resize((112, 112), Image.Resampling.NEAREST)
    assert len(colours(resize(image, 336))) == 2
    assert resize(image, 336).size == (336, 336)
    assert resize(Image.new("L", (1000, 3)), 100).size == (100, 1)


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


def test_grid_places_every_tile():
    shades = [(0, 10 * index, 200) for index in range(7)]
    sheet = draw_grid([Image.new("RGB", (50, 40), shade) for shade in shades], "seven", columns=3)
    assert sheet.width == 16 + 3 * (50 + 16)
    pixels = np.asarray(sheet)
    for shade in shades:
        assert (pixels == shade).all(axis=-1).sum() == 50 * 40


def test_grid_with_a_title_too_long_keeps_its_width():
    sheet = draw_grid([Image.new("RGB", (100, 100))], "long " * 200)
    assert sheet.width == 132
    with pytest.raises(ValueError, match="tiles is empty"):
        draw_grid([])


def test_overlap_colours():
    assert [overlap_colour(overlap) for overlap in (0.75, 0.5, 0.49, 0.0, -0.3)] == [GOOD, FAIR, POOR, POOR, POOR]


def test_shorten_fits_the_width():
    font = font_for("x", 12)
    for width in (0, 5, 30, 100):
        text = shorten("many words\nin a row", font, width)
        assert font.getlength(text) <= max(width, font.getlength("…"))
        assert "\n" not in text
