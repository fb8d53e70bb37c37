import numpy as np
import pytest

from vr1.boxes import pairwise_iou
from vr1.data.scene_drawing import SHAPES, SceneStyle, draw_scene
from vr1.data.synthetic import SceneSource


def pixels(record):
    return np.asarray(record.image)


def test_a_scene_is_a_function_of_its_seed_and_index():
    first, second = SceneSource(5, "train", seed=3), SceneSource(9, "train", seed=3)
    for index in (4, 0):
        assert (pixels(first[index]) == pixels(second[index])).all()
        assert (first[index].boxes_xyxy == second[index].boxes_xyxy).all()
        assert first[index].categories == second[index].categories


def test_splits_and_seeds_share_no_scene():
    seen = {
        pixels(SceneSource(20, split, seed=seed)[index]).tobytes()
        for split in ("train", "val", "test")
        for seed in (0, 1)
        for index in range(20)
    }
    assert len(seen) == 120


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_are_the_extent_of_the_drawn_pixels(shape):
    style = SceneStyle(num_objects=(1, 1), shapes=[shape], background="plain", noise=0.0, named=0.0)
    for seed in range(8):
        image, boxes, shapes = draw_scene(np.random.default_rng(seed), style)
        assert shapes == [shape]
        values = np.asarray(image).astype(int)
        drawn = (np.abs(values - values[0, 0]).sum(-1) > 0).nonzero()
        extent = np.array([drawn[1].min(), drawn[0].min(), drawn[1].max() + 1, drawn[0].max() + 1])
        np.testing.assert_allclose(boxes[0], extent, atol=1.0)


def test_labels_are_among_the_categories_and_distractors_are_not():
    style = SceneStyle(num_objects=(4, 6), num_categories=(1, 2), absent=0.0)
    distractors = 0
    for index in range(30):
        record = SceneSource(30, style=style)[index]
        assert set(record.labels) <= set(record.categories)
        assert record.labels, "with absent=0 an object of the question is present"
        _, boxes, _ = draw_scene(np.random.default_rng([0, 0, index]), style)
        distractors += len(boxes) - len(record.labels)
    assert distractors > 10


def test_share_of_scenes_without_an_object_of_the_question():
    source = SceneSource(300, style=SceneStyle(absent=0.3, num_objects=(1, 3)))
    empty = sum(not source[index].labels for index in range(300)) / 300
    assert 0.2 < empty < 0.4


def test_an_invented_name_stands_for_every_object():
    source = SceneSource(20, style=SceneStyle(named=1.0, num_objects=(2, 4)))
    for record in (source[index] for index in range(20)):
        assert len(record.categories) == 1
        assert record.categories[0] not in SHAPES
        assert set(record.labels) == set(record.categories)
        assert len(record.labels) >= 2


def test_objects_stay_inside_and_overlap_no_more_than_set():
    style = SceneStyle(num_objects=(6, 8), max_overlap=0.1)
    for seed in range(20):
        image, boxes, _ = draw_scene(np.random.default_rng(seed), style)
        width, height = image.size
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all()
        overlaps = pairwise_iou(boxes, boxes)
        # A drawn extent differs from the planned box by rounding.
        assert (overlaps[~np.eye(len(boxes), dtype=bool)] < 0.16).all()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_objects": (3, 1)}, "num_objects"),
        ({"object_size": (0, 5)}, "object_size"),
        ({"tint": 1.5}, "tint"),
        ({"shapes": ["blob"]}, "blob"),
        ({"canvas_sizes": [(4, 4)]}, "canvas_sizes"),
        ({"object_size": (83, 90), "canvas_sizes": [(140, 84)]}, "fits on none"),
        ({"noise": -1.0}, "noise"),
        ({"blur": float("nan")}, "blur"),
        ({"background": "cluttered"}, "background"),
    ],
)
def test_bad_styles_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        SceneStyle(**settings)


def test_bad_sources_are_refused():
    with pytest.raises(ValueError, match="length=0"):
        SceneSource(0)
    with pytest.raises(ValueError, match="'dev'"):
        SceneSource(1, "dev")  # type: ignore[arg-type]
    with pytest.raises(IndexError):
        SceneSource(3)[3]
