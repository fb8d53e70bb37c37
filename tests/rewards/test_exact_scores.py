"""Scores of whole answers, worked out by hand; each would come out otherwise if a term counted something else."""

import numpy as np
import pytest

from tests.rewards.test_overlap import pycocotools
from vr1.matching import BoxMatcher
from vr1.rewards import (
    AveragePrecision,
    Completeness,
    Count,
    Criterion,
    DynamicIou,
    Iou,
    LabelAccuracy,
    Precision,
    Recall,
)
from vr1.types import Detections, Targets, as_boxes

# Ten wide and high: what of its height a box covers is its IoU with the true box.
PLACES = [0, 20, 40, 60, 80]


def answer(*boxes):
    """Boxes given as (place, IoU, label)."""
    rows = [[PLACES[place], 0, PLACES[place] + 10, 10 * share] for place, share, _ in boxes]
    return Detections(
        boxes_xyxy=as_boxes(rows),
        labels=tuple(label for *_, label in boxes),
        scores=np.full(len(rows), 0.99),
        well_formed=True,
        valid=True,
    )


def truth(*labels):
    return Targets(
        boxes_xyxy=as_boxes([[PLACES[row], 0, PLACES[row] + 10, 10] for row in range(len(labels))]), labels=labels
    )


BEGINNER = Criterion(xi0=0.5, xi1=0.5, xi2=0.75)
# Three true boxes; of five predicted ones two match well, one of them by half, one has the wrong label, one is far out.
GIVEN = answer((0, 0.8, "cat"), (1, 0.6, "cat"), (2, 0.9, "dog"), (3, 1.0, "cat"), (4, 1.0, "cat"))
TRUE = truth("cat", "cat", "cat")


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (Recall(), 2 / 3),
        (Precision(), (1 + 0.6) / 5),
        (Precision(normalise_by="matched"), (1 + 0.6) / 3),
        (Iou(), (0.8 + 0.6) / 5),
        (Iou(normalise_by="matched"), (0.8 + 0.6) / 3),
        (DynamicIou(), (0.8 + 0.6) / 5),
        (Completeness(), (2 / 3 + 2 / 5) / 2),
        (Count(), 3 / 5),
        (LabelAccuracy(), 2 / 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_more_boxes_than_there_are(term, expected):
    match = BoxMatcher()(GIVEN, TRUE)
    assert term.score(match, BEGINNER) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (Recall(), 0.5),
        (Precision(), 1.0),
        (Iou(), 2 * 0.9 / 4),
        (DynamicIou(), 2 * 0.9 / 4),
        (Completeness(), (0.5 + 1) / 2),
        (Count(), 0.5),
        (LabelAccuracy(), 1.0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_fewer_boxes_than_there_are(term, expected):
    match = BoxMatcher()(answer((0, 0.9, "cat"), (1, 0.9, "cat")), truth("cat", "cat", "cat", "cat"))
    assert term.score(match, BEGINNER) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("term", "expected"),
    [(Recall(), 0.5), (Precision(), 0.3), (Iou(), 0.5), (DynamicIou(), 0.3), (Completeness(), 0.5)],
    ids=lambda value: type(value).__name__,
)
def test_a_box_below_the_threshold(term, expected):
    """Of two boxes one has an IoU of 0.4, which counts for the plain IoU alone; the other has 0.6."""
    match = BoxMatcher()(answer((0, 0.4, "cat"), (1, 0.6, "cat")), truth("cat", "cat"))
    assert term.score(match, BEGINNER) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_among_equal_overlaps(seed):
    """Copies of one true box, and predictions that overlap several alike: pycocotools has rules for which is taken."""
    generator = np.random.default_rng(seed)
    size = generator.integers(2, 5)
    true = Targets(
        boxes_xyxy=as_boxes([[0, 0, 10, 10]] * size + [[0, 0, 10, 20]] + [[5, 0, 15, 10]]),
        labels=tuple(generator.choice(["cat", "dog"], size + 2).tolist()),
    )
    rows = [
        [[0, 0, 10, 10], [0, 0, 10, 15], [0, 0, 10, 20], [2.5, 0, 12.5, 10]][kind]
        for kind in generator.integers(0, 4, 6)
    ]
    found = Detections(
        boxes_xyxy=as_boxes(rows),
        labels=tuple(generator.choice(["cat", "dog"], 6).tolist()),
        scores=np.full(6, 0.99),
        well_formed=True,
        valid=True,
    )
    match = BoxMatcher()(found, true)
    mean, at_half = pycocotools(found, true)
    assert AveragePrecision(absent="ignore").score(match, BEGINNER) == pytest.approx(mean, abs=1e-6)
    assert AveragePrecision([0.5], absent="ignore").score(match, BEGINNER) == pytest.approx(at_half, abs=1e-6)
