"""Rewards of the overlap: average precision against pycocotools on single images, IoU and dynamic IoU."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.rewards.test_reward import detections_of, targets_of
from vr1.matching import BoxMatcher
from vr1.rewards import AveragePrecision, Criterion, DynamicIou, Iou
from vr1.types import Detections, Targets, as_boxes

NAMES = ("cat", "dog", "bird")


def pycocotools(detections, targets):
    """(mAP, AP50) of one image with equal scores."""

    def item(number, box, label):
        x1, y1, x2, y2 = map(float, box)
        size = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
        return {"id": number, "image_id": 1, "category_id": NAMES.index(label), "iscrowd": 0, "score": 0.99, **size}

    truth, result = COCO(), COCO()
    shared = {"images": [{"id": 1}], "categories": [{"id": row, "name": name} for row, name in enumerate(NAMES)]}
    with contextlib.redirect_stdout(io.StringIO()):
        for coco, given in ((truth, targets), (result, detections)):
            rows = zip(given.boxes_xyxy, given.labels, strict=True)
            items = [item(number, *row) for number, row in enumerate(rows, start=1)]
            coco.dataset = {**shared, "annotations": items}
            coco.createIndex()
        evaluation = COCOeval(truth, result, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:2]


def draw(generator):
    corners = generator.uniform(0, 400, (generator.integers(1, 9), 2))
    boxes = np.hstack([corners, corners + generator.uniform(10, 90, corners.shape)])
    near = boxes[generator.random(len(boxes)) < 0.8].repeat(2, axis=0)
    near = np.round(near + generator.normal(0, 5, near.shape))
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    near = near[generator.permutation(len(near))[: generator.integers(0, len(near) + 1)]]
    labels = (tuple(generator.choice(NAMES, len(part)).tolist()) for part in (near, boxes))
    found_labels, true_labels = labels
    detections = Detections(
        boxes_xyxy=near, labels=found_labels, scores=np.full(len(near), 0.99), well_formed=True, valid=True
    )
    return detections, Targets(boxes_xyxy=boxes, labels=true_labels)


def test_equals_pycocotools():
    generator = np.random.default_rng(0)
    seen = []
    for _ in range(150):
        detections, targets = draw(generator)
        match = BoxMatcher()(detections, targets)
        ours = [
            AveragePrecision(absent="ignore").score(match, Criterion()),
            AveragePrecision([0.5], absent="ignore").score(match, Criterion()),
        ]
        assert ours == pytest.approx(pycocotools(detections, targets), abs=1e-9)
        seen.append(ours[0])
    assert np.std(seen) > 0.05


def test_at_most_a_hundred_boxes_count():
    boxes = as_boxes([[row, 0, row + 1, 1] for row in range(120)])
    everything = Targets(boxes_xyxy=boxes, labels=("cat",) * 120)
    detections = Detections(
        boxes_xyxy=boxes, labels=("cat",) * 120, scores=np.full(120, 0.99), well_formed=True, valid=True
    )
    match = BoxMatcher()(detections, everything)
    assert AveragePrecision().score(match, Criterion()) == pytest.approx(pycocotools(detections, everything)[0])


def test_invented_categories_cost_unless_ignored():
    box = [0, 0, 10, 10]
    match = BoxMatcher()(detections_of((box, "cat"), (box, "zebra")), targets_of((box, "Cat.")))
    assert AveragePrecision().score(match, Criterion()) == 0.5
    assert AveragePrecision(absent="ignore").score(match, Criterion()) == 1


def test_average_precision_without_targets(matched):
    assert AveragePrecision().score(matched([]), Criterion()) == 1
    assert AveragePrecision().score(matched([], num_predicted=1), Criterion()) == 0
    assert AveragePrecision().score(matched([], num_targets=1), Criterion()) == 0


@pytest.mark.parametrize("settings", [{"thresholds": []}, {"thresholds": [1.5]}, {"absent": "punish"}])
def test_average_precision_wrong_settings_are_errors(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        AveragePrecision(**settings)


@pytest.mark.parametrize(
    ("overlap", "num_predicted", "num_targets", "larger", "over_matched"),
    [
        ([0.8], 1, 1, 0.8, 0.8),
        ([0.8, 0.4], 4, 2, 0.3, 0.6),
        ([0.8, 0.4], 2, 3, 0.4, 0.6),
        ([0.5, -0.4], 2, 2, 0.25, 0.25),
        ([], 0, 3, 0, 0),
    ],
)
def test_iou_values(matched, overlap, num_predicted, num_targets, larger, over_matched):
    match = matched(overlap, num_predicted, num_targets)
    assert Iou().score(match, Criterion()) == pytest.approx(larger)
    assert Iou(normalise_by="matched").score(match, Criterion()) == pytest.approx(over_matched)


def test_iou_without_targets(matched):
    assert Iou().score(matched([]), Criterion()) == 1
    assert Iou().score(matched([], num_predicted=1), Criterion()) == 0


def test_iou_an_unknown_count_is_an_error():
    with pytest.raises(ValueError, match="normalise_by='all'"):
        Iou(normalise_by="all")


@pytest.mark.parametrize(("threshold", "expected"), [(0.85, 0.6), (0.95, 0.32), (0.99, 0.0), (0.0, 0.6)])
def test_the_threshold_of_dynamic_iou_is_the_criterions(matched, threshold, expected):
    assert DynamicIou().score(matched([0.96, 0.84 + 0.02, -0.3]), Criterion(xi0=threshold)) == pytest.approx(
        expected, abs=0.01
    )


def test_redundant_and_missing_boxes_cost(matched):
    assert DynamicIou().score(matched([0.9], num_predicted=2), Criterion()) == pytest.approx(0.45)
    assert DynamicIou().score(matched([0.9], num_targets=3), Criterion()) == pytest.approx(0.3)


def test_dynamic_iou_without_targets(matched):
    assert DynamicIou().score(matched([]), Criterion()) == 1
    assert DynamicIou().score(matched([], valid=False), Criterion()) == 0
