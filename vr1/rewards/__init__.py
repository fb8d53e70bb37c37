"""Reward terms, the criterion that they share, and their sum."""

from vr1.rewards.average_precision import AveragePrecision
from vr1.rewards.completeness import Completeness
from vr1.rewards.count import Count
from vr1.rewards.criterion import STAGES, Criterion, Stage
from vr1.rewards.dual_format import DualFormat
from vr1.rewards.dynamic_iou import DynamicIou
from vr1.rewards.iou import Iou
from vr1.rewards.label_accuracy import LabelAccuracy
from vr1.rewards.length import Length
from vr1.rewards.precision import Precision
from vr1.rewards.recall import Recall
from vr1.rewards.reward import Reward, RewardOutput
from vr1.rewards.term import RewardTerm
from vr1.rewards.think_answer import ThinkAnswer

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
    "Precision",
    "Recall",
    "Reward",
    "RewardOutput",
    "RewardTerm",
    "Stage",
    "ThinkAnswer",
]
