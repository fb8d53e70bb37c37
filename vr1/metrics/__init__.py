"""Metrics of answers: COCO average precision, accuracy of referring expressions, and statistics of answers."""

from vr1.metrics.coco import CocoMetrics
from vr1.metrics.referring import ReferringAccuracy
from vr1.metrics.statistics import AnswerStatistics

__all__ = ["AnswerStatistics", "CocoMetrics", "ReferringAccuracy"]
