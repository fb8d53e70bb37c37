import numpy as np
import pytest
import torch
from torchvision.ops import box_iou, generalized_box_iou

from vr1.boxes import pairwise_giou, pairwise_iou, rescale
from vr1.types import as_boxes


def random_boxes(generator, count):
    corners = generator.uniform(0, 100, (count, 2, 2))
    return np.sort(corners, axis=1).reshape(count, 4)


@pytest.mark.parametrize(("ours", "theirs"), [(pairwise_iou, box_iou), (pairwise_giou, generalized_box_iou)])
@pytest.mark.parametrize("counts", [(1, 1), (7, 3), (40, 40)])
def test_agrees_with_torchvision(ours, theirs, counts):
    generator = np.random.default_rng(0)
    boxes, others = (random_boxes(generator, count) for count in counts)
    expected = theirs(torch.from_numpy(boxes), torch.from_numpy(others)).numpy()
    assert ours(boxes, others).dtype == np.float64
    np.testing.assert_allclose(ours(boxes, others), expected, atol=1e-12)


@pytest.mark.parametrize("function", [pairwise_iou, pairwise_giou])
@pytest.mark.parametrize("counts", [(0, 3), (3, 0), (0, 0)])
def test_no_boxes(function, counts):
    boxes, others = (random_boxes(np.random.default_rng(0), count) for count in counts)
    assert function(boxes, others).shape == counts


@pytest.mark.filterwarnings("error")
def test_boxes_without_area():
    point, line, box = [5, 5, 5, 5], [0, 5, 10, 5], [0, 0, 10, 10]
    boxes = as_boxes([point, line, box, [50, 50, 50, 50]])
    assert pairwise_iou(boxes, boxes).tolist() == np.diag([0, 0, 1, 0]).tolist()
    giou = pairwise_giou(boxes, boxes)
    assert np.isfinite(giou).all()
    assert giou.min() >= -1
    assert giou[0, 0] == 0
    assert giou[0, 3] == -1


def test_rescale_and_back():
    boxes = random_boxes(np.random.default_rng(0), 5)
    there = rescale(boxes, (640, 480), (1000, 1000))
    np.testing.assert_allclose(rescale(there, (1000, 1000), (640, 480)), boxes)
