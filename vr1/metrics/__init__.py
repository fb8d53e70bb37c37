"""Metrics over answers: COCO average precision, referring accuracy, and what the answers are like."""

from vr1.metrics.coco import CocoMetrics
from vr1.metrics.referring import ReferringAccuracy
from vr1.metrics.statistics import AnswerStatistics

__all__ = ["AnswerStatistics", "CocoMetrics", "ReferringAccuracy"]
