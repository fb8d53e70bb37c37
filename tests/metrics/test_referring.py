import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from tests.metrics.test_coco import blank_records
from tests.shared_data import SHARED, needs_shared
from vr1.detections import read_detections
from vr1.families import Qwen25VL
from vr1.metrics import ReferringAccuracy
from vr1.types import Detections, as_boxes

RECORDED = SHARED / "completions" / "refcoco_val_qwen2.5-vl-3b.jsonl"


def record(box, crowd=()):
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": int(is_crowd)}
            for number, is_crowd in enumerate([False, *crowd], start=1)
        ],
    }
    [made] = blank_records(document)
    boxes = made.boxes_xyxy.copy()
    boxes[0] = box
    return replace(made, boxes_xyxy=boxes)


def answer(*boxes):
    count = len(boxes)
    return Detections(
        boxes_xyxy=as_boxes(list(boxes)), labels=("x",) * count, scores=np.ones(count), well_formed=False, valid=False
    )


def test_against_torchvision():
    generator = np.random.default_rng(0)
    true = generator.uniform(0, 50, (200, 4)).round(1)
    true[:, 2:] += true[:, :2] + 1
    found = true + generator.normal(0, 8, true.shape)
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2])
    metric = ReferringAccuracy()
    for first in range(0, 200, 50):
        rows = slice(first, first + 50)
        metric.update([answer(box) for box in found[rows]], [record(box) for box in true[rows]])
    expected = (box_iou(torch.from_numpy(found), torch.from_numpy(true)).diagonal() >= 0.5).double().mean()
    assert 0.1 < expected < 0.9
    assert metric.compute().item() == pytest.approx(expected.item())


def test_only_the_first_box_counts_and_half_is_enough():
    metric = ReferringAccuracy()
    right, half, wrong = [0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60]
    metric.update(
        [answer(right, wrong), answer(wrong, right), answer(half), answer()],
        [record(right), record(right, crowd=[True]), record(right), record(right)],
    )
    assert metric.compute().item() == 0.5
    strict = ReferringAccuracy(threshold=0.51)
    strict.update([answer(half)], [record(right)])
    assert strict.compute().item() == 0


@needs_shared
@pytest.mark.parametrize("model", ["sft_500", "r1_600"])
def test_recorded_answers_score_as_the_authors_logged(model):
    """What was logged looks at the first box with the model's input of the image's own size, as was recorded."""
    family, wrong = Qwen25VL(), 0
    lines = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    for line in lines:
        found = read_detections(line["completions"][model], family, (10_000, 10_000), (10_000, 10_000))
        metric = ReferringAccuracy()
        metric.update([found], [record(line["bbox_xyxy"])])
        wrong += metric.compute().item() != line["logged_correct"][model]
    assert wrong <= 1


def test_refuses_what_is_no_expression():
    with pytest.raises(ValueError, match=r"test 1 has 2 true boxes; an expression refers to one"):
        ReferringAccuracy().update([answer()], [record([0, 0, 1, 1], crowd=[False])])
    with pytest.raises(ValueError, match="1 answers to 0 records"):
        ReferringAccuracy().update([answer()], [])
    with pytest.raises(ValueError, match=r"threshold=0\): give an IoU above 0"):
        ReferringAccuracy(threshold=0)
