import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vr1.boxes import BoxRules
from vr1.detections import read_detections
from vr1.families import Qwen25VL
from vr1.types import SCORE, Answer, as_boxes

FAMILY = Qwen25VL()


def read(box, label='"cat"'):
    text = f'[{{"bbox_2d": {box}, "label": {label}}}]'
    return read_detections(text, FAMILY, image_size=(200, 400), input_size=(100, 200))


def test_converts_to_image_pixels():
    found = read([10, 20, 30, 40])
    assert found.boxes_xyxy.tolist() == [[20, 40, 60, 80]]
    assert found.labels == ("cat",)
    assert found.scores.tolist() == [SCORE]
    assert found.well_formed
    assert found.valid


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([30, 20, 10, 40], [20, 40, 60, 80]),
        ([10, 20, 30, 201], [20, 40, 60, 400]),
        ([-5, 20, 30, 40], [0, 40, 60, 80]),
        ([10, 20, 10, 40], [20, 40, 20, 80]),
        ([500, 500, 600, 600], [200, 400, 200, 400]),
        ([10, 20, 1e308, 40], [20, 40, 200, 80]),
    ],
)
@pytest.mark.filterwarnings("error")
def test_usable_boxes_count_but_are_not_valid(box, expected):
    found = read(box)
    assert found.boxes_xyxy.tolist() == [expected]
    assert found.well_formed
    assert not found.valid


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (BoxRules(), [[20, 40, 60, 80], [0, 20, 200, 120], [20, 40, 20, 80]]),
        (BoxRules(outside="keep"), [[20, 40, 60, 80], [-10, 20, 300, 120], [20, 40, 20, 80]]),
        (BoxRules(swapped="drop"), [[0, 20, 200, 120]]),
        (BoxRules(whole_numbers=True), [[20, 40, 60, 80], [0, 20, 200, 120], [20, 40, 20, 80]]),
        (BoxRules(outside="keep", swapped="drop", whole_numbers=True), [[-10, 20, 300, 120]]),
    ],
)
def test_rules_for_boxes_outside_and_swapped(rules, expected):
    text = (
        '[{"bbox_2d": [30, 20, 10, 40], "label": "a"}, {"bbox_2d": [-5, 10, 150, 60], "label": "b"},'
        ' {"bbox_2d": [10, 20, 10, 40], "label": "c"}]'
    )
    found = read_detections(text, FAMILY, (200, 400), (100, 200), rules)
    assert found.boxes_xyxy.tolist() == expected
    assert len(found.labels) == len(found.item_spans) == len(found.box_spans) == len(expected)
    assert found.labels == (("b",) if rules.swapped == "drop" else ("a", "b", "c"))
    assert found.well_formed
    assert not found.valid


def test_numbers_are_cut_towards_zero_before_they_are_compared():
    text = '[{"bbox_2d": [-5.9, 2.1, 5.9, 3.9], "label": "a"}, {"bbox_2d": [1.2, 1, 1.9, 5], "label": "b"}]'
    rules = BoxRules(outside="keep", swapped="drop", whole_numbers=True)
    assert read_detections(text, FAMILY, (100, 100), (100, 100), rules).boxes_xyxy.tolist() == [[-5, 2, 5, 3]]
    with pytest.raises(ValueError, match=r"box_rules\.outside='cut': must be clip or keep"):
        BoxRules(outside="cut")
    with pytest.raises(ValueError, match=r"box_rules\.swapped='sort': must be order or drop"):
        BoxRules(swapped="sort")


@pytest.mark.filterwarnings("error")
def test_a_kept_box_stays_finite():
    text = '[{"bbox_2d": [1e308, -1e308, 1.5e308, 4], "label": "a"}]'
    found = read_detections(text, FAMILY, (10_000, 10_000), (10, 10), BoxRules(outside="keep"))
    assert np.isfinite((found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]).prod())


def test_what_could_not_be_read_is_passed_on():
    assert read_detections('[{"label": "cat"}]', FAMILY, (9, 9), (9, 9)).problems == ("no box: ['cat']",)


@pytest.mark.parametrize("box", ["[NaN, 1, 2, 3]", "[1, 2, 3, 1e999]"])
def test_boxes_that_are_not_finite_are_dropped(box):
    found = read(box)
    assert len(found) == 0
    assert found.well_formed
    assert not found.valid


@pytest.mark.parametrize("label", ['""', '" "'])
def test_an_item_without_a_label_is_not_valid(label):
    assert not read([10, 20, 30, 40], label).valid


def test_the_border_is_inside():
    assert read([0, 0, 100, 200]).valid
    beyond = read([-0.5, 0, 100.5, 200])
    assert not beyond.valid
    assert beyond.boxes_xyxy.tolist() == [[0, 0, 200, 400]]


def test_an_empty_list_is_valid_and_no_answer_is_not():
    assert read_detections("[]", FAMILY, (9, 9), (9, 9)).valid
    assert not read_detections("", FAMILY, (9, 9), (9, 9)).valid


def test_a_family_may_hand_over_boxes_that_are_not_finite():
    class Careless(Qwen25VL):
        def read(self, completion):
            return Answer(boxes=as_boxes([[np.nan] * 4, [1, 2, 3, 4]]), labels=("a", "b"), follows_template=True)

    found = read_detections("", Careless(), (9, 9), (9, 9))
    assert found.labels == ("b",)
    assert found.boxes_xyxy.tolist() == [[1, 2, 3, 4]]
    assert not found.valid


@given(st.text(st.sampled_from('[]{}",:0123456789.-e bx_2dlabel\n'), max_size=120))
@settings(deadline=None, max_examples=200)
def test_boxes_lie_in_the_image_whatever_is_read(completion):
    found = read_detections(completion, FAMILY, (640, 480), (644, 476))
    assert (found.boxes_xyxy[:, :2] <= found.boxes_xyxy[:, 2:]).all()
    assert ((found.boxes_xyxy >= 0) & (found.boxes_xyxy <= [640, 480, 640, 480])).all()
