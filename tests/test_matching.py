"""Matching against all assignments, tried one by one, and against torchvision's GIoU."""

import itertools
import time

import numpy as np
import pytest
import torch
from torchvision.ops import generalized_box_iou

from vr1.boxes import pairwise_iou
from vr1.matching import BoxMatcher
from vr1.types import Detections, Targets, as_boxes

RELEASED = BoxMatcher(l1=1, iou=0, giou=1, label=1, overlap="giou", label_rule="ignore")


def detections(boxes, labels):
    boxes = as_boxes(boxes)
    return Detections(boxes_xyxy=boxes, labels=tuple(labels), scores=np.ones(len(boxes)), well_formed=True, valid=True)


def targets(boxes, labels):
    return Targets(boxes_xyxy=as_boxes(boxes), labels=tuple(labels))


def random_case(seed, count, others):
    generator = np.random.default_rng(seed)

    def draw(number):
        boxes = np.sort(generator.uniform(0, 50, (number, 2, 2)), axis=1).reshape(number, 4)
        return boxes, generator.choice(["cat", "dog"], number).tolist()

    return detections(*draw(count)), targets(*draw(others))


def lowest_cost(cost):
    """The smallest sum over all one-to-one assignments, by trying them all."""
    if cost.shape[0] > cost.shape[1]:
        cost = cost.T
    rows = range(cost.shape[0])
    return min(cost[rows, list(columns)].sum() for columns in itertools.permutations(range(cost.shape[1]), len(rows)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1), (3, 5), (5, 3), (5, 5)])
@pytest.mark.parametrize("seed", range(5))
def test_box_only_is_the_best_of_all_assignments(shape, seed):
    predicted, true = random_case(seed, *shape)
    match = BoxMatcher(label_rule="ignore")(predicted, true)
    assert len(match.overlap) == min(shape)
    assert len({*match.predicted.tolist()}) == len({*match.target.tolist()}) == min(shape)
    assert match.overlap.sum() == pytest.approx(-lowest_cost(-pairwise_iou(predicted.boxes_xyxy, true.boxes_xyxy)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1), (3, 5), (5, 3)])
@pytest.mark.parametrize("seed", range(5))
def test_released_cost_is_the_best_of_all_assignments(shape, seed):
    predicted, true = random_case(seed, *shape)
    match = RELEASED(predicted, true)
    boxes, others = torch.from_numpy(predicted.boxes_xyxy), torch.from_numpy(true.boxes_xyxy)
    giou = generalized_box_iou(boxes, others)
    agree = torch.tensor([[a == b for b in true.labels] for a in predicted.labels])
    cost = (torch.cdist(boxes, others, p=1) - agree.double() - giou).numpy()
    assert cost[match.predicted, match.target].sum() == pytest.approx(lowest_cost(cost))
    np.testing.assert_allclose(match.overlap, giou.numpy()[match.predicted, match.target])


@pytest.mark.parametrize("matcher", [BoxMatcher(), RELEASED])
@pytest.mark.parametrize("seed", range(10))
def test_the_order_of_boxes_does_not_matter(matcher, seed):
    predicted, true = random_case(seed, 6, 4)
    generator = np.random.default_rng(seed)
    rows, columns = generator.permutation(6), generator.permutation(4)
    shuffled = matcher(
        detections(predicted.boxes_xyxy[rows], [predicted.labels[row] for row in rows]),
        targets(true.boxes_xyxy[columns], [true.labels[column] for column in columns]),
    )
    match = matcher(predicted, true)
    np.testing.assert_allclose(sorted(shuffled.overlap), sorted(match.overlap))
    pairs = {*zip(rows[shuffled.predicted].tolist(), columns[shuffled.target].tolist(), strict=True)}
    if matcher is RELEASED:
        assert pairs == {*zip(match.predicted.tolist(), match.target.tolist(), strict=True)}


@pytest.mark.parametrize("labels", [("cat", "dog"), ("dog", "cat")])
def test_of_equal_boxes_the_one_with_the_right_label_is_matched(labels):
    box = [0, 0, 10, 10]
    match = BoxMatcher()(detections([box, box], labels), targets([box], ["dog"]))
    assert match.overlap.tolist() == [1.0]
    both = BoxMatcher()(detections([box, box], labels), targets([box, box], ["cat", "dog"]))
    assert both.overlap.tolist() == [1.0, 1.0]


def test_label_rule():
    box = [0, 0, 10, 10]
    predicted, true = detections([box], ["cat"]), targets([box], ["dog"])
    zeroed = BoxMatcher()(predicted, true)
    assert zeroed.overlap.tolist() == [0.0]
    assert zeroed.predicted.tolist() == zeroed.target.tolist() == [0]
    assert BoxMatcher(label_rule="ignore")(predicted, true).overlap.tolist() == [1.0]


@pytest.mark.parametrize("label", ["Traffic Light", " traffic light ", "traffic light.", "TRAFFIC LIGHT. "])
def test_labels_agree_in_all_but_form(label):
    box = [0, 0, 10, 10]
    assert BoxMatcher()(detections([box], [label]), targets([box], ["traffic light"])).overlap.tolist() == [1.0]


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
@pytest.mark.parametrize("matcher", [BoxMatcher(), RELEASED])
def test_nothing_to_match(matcher, shape):
    predicted, true = random_case(0, *shape)
    match = matcher(predicted, true)
    assert (len(match.predicted), len(match.target), len(match.overlap)) == (0, 0, 0)
    assert (match.num_predicted, match.num_targets) == shape


@pytest.mark.parametrize("matcher", [BoxMatcher(), RELEASED])
def test_ten_thousand_boxes_take_less_than_five_seconds(matcher):
    predicted, true = random_case(0, 10_000, 30)
    started = time.process_time()
    assert len(matcher(predicted, true).overlap) == 30
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"iou": -1.0}, r"iou=-1\.0.*>= 0"),
        ({"l1": float("nan")}, "l1=nan"),
        ({"iou": 0.0}, "at least one"),
        ({"overlap": "dice"}, "overlap='dice'"),
        ({"label_rule": "x"}, "label_rule='x'"),
    ],
)
def test_wrong_settings_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        BoxMatcher(**arguments)


def test_the_better_box_wins_by_however_little_over_the_right_label():
    """IoU 0.9505 with the wrong label against 0.95 with the right one, in both orders and beside a second true box."""
    better, right, true = [0, 0, 100, 95.05], [0, 0, 100, 95], [0, 0, 100, 100]
    for boxes, labels, winner in (((better, right), ("dog", "cat"), 0), ((right, better), ("cat", "dog"), 1)):
        match = BoxMatcher(label_rule="ignore")(detections(boxes, labels), targets([true], ["cat"]))
        assert match.predicted.tolist() == [winner]
        far = [[300, 0, 310, 10], [300, 40, 310, 50]]
        match = BoxMatcher(label_rule="ignore")(
            detections([*boxes, *far], [*labels, "far", "far"]), targets([true, far[0]], ["cat", "far"])
        )
        assert dict(zip(match.target.tolist(), match.predicted.tolist(), strict=True)) == {0: winner, 1: 2}


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (4, 4), (3, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_giou_alone_is_the_best_of_all_assignments(shape, seed):
    """Beside an L1 distance in pixels its sign would hardly matter."""
    found, true = random_case(seed, *shape)
    match = BoxMatcher(iou=0, giou=1, overlap="giou", label_rule="ignore")(found, true)
    giou = generalized_box_iou(torch.from_numpy(found.boxes_xyxy), torch.from_numpy(true.boxes_xyxy)).numpy()
    assert match.overlap.sum() == pytest.approx(-lowest_cost(-giou))
