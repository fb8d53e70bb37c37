"""The released rewards against an independent implementation of the released code, in torch and float32."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from scipy.optimize import linear_sum_assignment
from torchvision.ops import generalized_box_iou

from vr1.boxes import BoxRules
from vr1.detections import read_detections
from vr1.errors import UserError
from vr1.families import Qwen25VL
from vr1.rewards import Reward
from vr1.rewards.base import STAGES
from vr1.types import Targets, as_boxes

CONFIGS = Path(__file__).parents[2] / "configs" / "rewards"
IMAGE, INPUT = (640, 480), (672, 504)
LABELS = ["cat", "dog", "bird"]


def reference(boxes, labels, true_boxes, true_labels, adaptive, late):
    """Dual format, recall, precision of an answer in valid JSON; boxes in input pixels, true ones in image pixels.

    Numbers are cut to whole ones; boxes without an area or with swapped corners are dropped; none is clipped.
    """

    def band(values, low, high):
        values = torch.where(values < low, torch.zeros_like(values), values)
        return torch.where(values > high, torch.ones_like(values), values)

    whole = [[int(number) for number in box] for box in boxes]
    kept = [row for row, (x1, y1, x2, y2) in enumerate(whole) if x1 < x2 and y1 < y2]
    if not kept:
        return 1.0, 0.0, 0.0
    boxes, labels = [whole[row] for row in kept], [labels[row] for row in kept]
    scale = torch.tensor([IMAGE[0] / INPUT[0], IMAGE[1] / INPUT[1]] * 2)
    predicted, true = torch.tensor(boxes).float() * scale, torch.tensor(true_boxes).float()
    same = torch.tensor([[float(a == b) for b in true_labels] for a in labels])
    giou = generalized_box_iou(predicted, true)
    pairs = linear_sum_assignment(torch.cdist(predicted, true, p=1) - same - giou)
    quality = giou[pairs]
    at = 0.75 if adaptive and late else 0.5
    recall = band(quality, at, at).sum() / len(true_boxes)
    low, high = ((0.75, 0.9) if late else (0.5, 0.75)) if adaptive else (0.0, 1.0)
    recall = band(recall[None], *((0.5, 0.75) if adaptive else (0.0, 1.0)))
    return 1.0, recall.item(), band(quality, low, high).mean().item()


def draw(generator):
    """Answers near, and unrelated to, the true boxes: also with decimals, beyond the image, with swapped corners."""
    corners = generator.uniform(20, [540, 380], (generator.integers(1, 8), 2))
    true = np.hstack([corners, corners + generator.uniform(5, 80, corners.shape)])
    near = true * 1.05 + generator.normal(0, 3, true.shape)
    answers = near[generator.random(len(near)) < 0.8]
    far = np.round(generator.uniform(0, 200, (generator.integers(0, 3), 2)))
    edge = generator.uniform([-30, -30, 600, 430], [20, 20, 800, 600], (generator.integers(0, 2), 4))
    answers = np.vstack([answers, np.hstack([far, far + 40]), edge])
    swapped = generator.random(len(answers)) < 0.1
    answers[swapped] = answers[swapped][:, [2, 1, 0, 3]]
    flat = generator.random(len(answers)) < 0.05
    answers[flat, 3] = answers[flat, 1]
    decimals = generator.integers(0, 3)
    answers = np.round(answers, decimals)
    labels, true_labels = (generator.choice(LABELS, len(boxes)).tolist() for boxes in (answers, true))
    written = answers.astype(int).tolist() if decimals == 0 else answers.tolist()
    return written, labels, true.tolist(), true_labels


def parsed(config):
    """The reward of a file."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Reward, "reward")
    arguments = parser.parse_args(["--reward", str(CONFIGS / f"{config}.yaml")])
    return (getattr(parser, "instantiate", None) or parser.instantiate_classes)(arguments).reward


@pytest.mark.parametrize(
    ("config", "stage", "adaptive", "late"),
    [
        ("released", None, False, False),
        ("released", "off", False, False),
        ("released_adaptive", None, True, False),
        ("released_adaptive", "beginner", True, False),
        ("released_adaptive", "advanced", True, True),
    ],
)
def test_same_rewards(config, stage, adaptive, late):
    reward = parsed(config)
    if stage:
        reward.set_stage(stage)
    generator, family = np.random.default_rng(0), Qwen25VL()
    cases = [draw(generator) for _ in range(654)]
    texts = [
        json.dumps([{"bbox_2d": box, "label": label} for box, label in zip(boxes, labels, strict=True)])
        for boxes, labels, _, _ in cases
    ]
    detections = [read_detections(text, family, IMAGE, INPUT, reward.box_rules) for text in texts]
    output = reward(
        detections, [Targets(boxes_xyxy=as_boxes(boxes), labels=tuple(labels)) for *_, boxes, labels in cases]
    )
    ours = torch.stack([output.terms[name] for name in ("dual_format", "recall", "precision")], dim=1)
    theirs = torch.tensor([reference(*case, adaptive, late) for case in cases])
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert 20 < sum(len(found) < len(boxes) for found, (boxes, *_) in zip(detections, cases, strict=True)) < 500
    assert 20 < sum((found.boxes_xyxy[:, 2] > IMAGE[0]).any() for found in detections) < 500
    # The rewards of the cases differ.
    assert theirs.std(dim=0)[1:].min() > 0.05


@pytest.mark.parametrize(
    ("config", "stage", "named"),
    [("released", "beginner", "have off"), ("released", "advanced", "have off"),
     ("released_adaptive", "off", "have beginner and advanced")],
)  # fmt: skip
def test_a_stage_that_the_released_code_does_not_have_is_refused(config, stage, named):
    with pytest.raises(UserError, match=f"stage {stage}: these rewards {named}"):
        parsed(config).set_stage(stage)


def test_every_stage_goes_with_the_papers_rewards():
    for stage in STAGES:
        reward = parsed("paper")
        reward.set_stage(stage)
        assert reward.criterion == STAGES[stage]
    assert parsed("paper").box_rules == BoxRules()
