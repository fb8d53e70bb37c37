"""Drawn boxes, asserted by the pixels at their edges."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.drawing.predictions import with_boxes
from vr1.drawing import draw_prediction
from vr1.drawing.boxes import FAIR, GOOD, MARKED, PALETTE, POOR, TRUTH, example_prediction, overlap_colour, resize


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


def test_crowd_regions_are_not_drawn():
    prediction = with_boxes([], (), truth=[[100, 60, 180, 140]])
    crowd = replace(prediction, record=replace(prediction.record, crowd=np.ones(1, bool)))
    assert TRUTH in colours(draw_prediction(prediction))
    assert colours(draw_prediction(crowd)) == {(128, 128, 128)}


@pytest.mark.parametrize("judge", [True, False])
def test_names_end_with_the_scores_of_the_model(judge):
    prediction = with_boxes([[20, 100, 60, 140]], "a", matched=[0], overlap=[0.9], truth=[[150, 10, 180, 40]])

    def drawn(score):
        detections = replace(prediction.detections, scores=np.array([score]))
        return draw_prediction(replace(prediction, detections=detections), judge=judge)

    assert drawn(0.99) == draw_prediction(prediction, judge=judge)
    assert drawn(0.99) != drawn(0.5) != drawn(0.6)


def test_without_ground_truth_boxes_are_coloured_by_label():
    prediction = with_boxes(
        [[20, 100, 60, 140], [80, 100, 120, 140]], ["red circle", "unheard of"], truth=[[1, 1, 50, 50]]
    )
    picture = draw_prediction(prediction, judge=False)
    assert picture.getpixel((20, 120)) == PALETTE[0]
    assert picture.getpixel((80, 120)) == PALETTE[3]
    assert FAIR not in colours(picture)


def test_boxes_with_a_problem_are_dashed_and_grey():
    prediction = with_boxes([[20, 60, 100, 140], [120, 60, 180, 140]], ["red circle", "a cat"])
    picture = draw_prediction(prediction, judge=False, problems=["", "not requested"])
    left = [picture.getpixel((20, y)) for y in range(60, 141)]
    right = [picture.getpixel((120, y)) for y in range(60, 141)]
    assert left.count(PALETTE[0]) == len(left)
    assert 0.3 < right.count(MARKED) / len(right) < 0.9


def test_a_box_without_area_is_crossed_out():
    prediction = with_boxes([[100, 80, 100, 80]], ["red circle"])
    picture = draw_prediction(prediction, judge=False, problems=["no area"])
    assert all(picture.getpixel((100 + by, 80 + by)) == MARKED for by in (-3, 0, 3))


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


def test_overlap_colours():
    assert [overlap_colour(overlap) for overlap in (0.75, 0.5, 0.49, 0.0, -0.3)] == [GOOD, FAIR, POOR, POOR, POOR]
