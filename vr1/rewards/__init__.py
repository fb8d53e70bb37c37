"""Reward terms, the criterion that they share, and their sum."""

from vr1.rewards.criterion import STAGES, Criterion, Stage
from vr1.rewards.dual_format import DualFormat
from vr1.rewards.precision import Precision
from vr1.rewards.recall import Recall
from vr1.rewards.reward import Reward, RewardOutput
from vr1.rewards.term import RewardTerm

__all__ = ["STAGES", "Criterion", "DualFormat", "Precision", "Recall", "Reward", "RewardOutput", "RewardTerm", "Stage"]
