"""Reward terms, the criterion (thresholds) that they share, and their weighted sum."""

from vr1.rewards.base import STAGES, Criterion, MeanScore, RewardTerm, Stage
from vr1.rewards.counts import Completeness, Count, LabelAccuracy
from vr1.rewards.overlap import AveragePrecision, DynamicIou, Iou
from vr1.rewards.paper import DualFormat, Precision, Recall
from vr1.rewards.reward import Reward, RewardOutput
from vr1.rewards.text import Length, ThinkAnswer

__all__ = [
    "STAGES",
    "AveragePrecision",
    "Completeness",
    "Count",
    "Criterion",
    "DualFormat",
    "DynamicIou",
    "Iou",
    "LabelAccuracy",
    "Length",
    "MeanScore",
    "Precision",
    "Recall",
    "Reward",
    "RewardOutput",
    "RewardTerm",
    "Stage",
    "ThinkAnswer",
]
