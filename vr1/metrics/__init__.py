"""Metrics over answers: COCO average precision, and what the answers are like."""

from vr1.metrics.answers import AnswerStatistics
from vr1.metrics.coco import CocoMetrics

__all__ = ["AnswerStatistics", "CocoMetrics"]
