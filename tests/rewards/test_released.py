"""The released rewards against an independent implementation of the released code, in torch and float32."""

from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from scipy.optimize import linear_sum_assignment
from torchvision.ops import generalized_box_iou

from vr1.detections import read_detections
from vr1.families import Qwen25VL
from vr1.rewards import Reward
from vr1.types import Targets, as_boxes

CONFIGS = Path(__file__).parents[2] / "configs" / "rewards"
IMAGE, INPUT = (640, 480), (672, 504)
LABELS = ["cat", "dog", "bird"]


def reference(boxes, labels, true_boxes, true_labels, adaptive, late):
    """Dual format, recall, precision of an answer in valid JSON; boxes in input pixels, true ones in image pixels."""

    def band(values, low, high):
        values = torch.where(values < low, torch.zeros_like(values), values)
        return torch.where(values > high, torch.ones_like(values), values)

    if not boxes:
        return 1.0, 0.0, 0.0
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
    """Whole-pixel answers near, and unrelated to, the true boxes, ordered and inside the image."""
    corners = generator.uniform(20, [540, 380], (generator.integers(1, 8), 2))
    true = np.hstack([corners, corners + generator.uniform(5, 80, corners.shape)])
    near = np.round(true * 1.05 + generator.normal(0, 3, true.shape))
    answers = near[generator.random(len(near)) < 0.8]
    far = np.round(generator.uniform(0, 200, (generator.integers(0, 3), 2)))
    answers = np.vstack([answers, np.hstack([far, far + 40])])
    answers[:, 2:] = np.maximum(answers[:, 2:], answers[:, :2] + 1)
    labels, true_labels = (generator.choice(LABELS, len(boxes)).tolist() for boxes in (answers, true))
    return answers.tolist(), labels, true.tolist(), true_labels


@pytest.mark.parametrize(
    ("config", "stage", "adaptive", "late"),
    [
        ("released", None, False, False),
        ("released_adaptive", None, True, False),
        ("released_adaptive", "advanced", True, True),
    ],
)
def test_same_rewards(config, stage, adaptive, late):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Reward, "reward")
    arguments = parser.parse_args(["--reward", str(CONFIGS / f"{config}.yaml")])
    reward = (getattr(parser, "instantiate", None) or parser.instantiate_classes)(arguments).reward
    if stage:
        reward.criterion = reward.criterion.at_stage(stage)
    generator, family = np.random.default_rng(0), Qwen25VL()
    cases = [draw(generator) for _ in range(300)]
    detections = [
        read_detections(family.write(as_boxes(boxes), labels), family, IMAGE, INPUT) for boxes, labels, _, _ in cases
    ]
    output = reward(
        detections, [Targets(boxes_xyxy=as_boxes(boxes), labels=tuple(labels)) for *_, boxes, labels in cases]
    )
    ours = torch.stack([output.terms[name] for name in ("dual_format", "recall", "precision")], dim=1)
    theirs = torch.tensor([reference(*case, adaptive, late) for case in cases])
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    # The rewards of the cases differ.
    assert theirs.std(dim=0)[1:].min() > 0.05
