"""Lightning callbacks of vr1, for a trainer's ``callbacks`` in Python or, by ``class_path``, in YAML."""

from callbacks.before_after import BeforeAfter
from callbacks.completions import Completions
from callbacks.curves import Curves
from callbacks.evaluation import Evaluation
from callbacks.export import Export
from callbacks.gallery import Gallery
from callbacks.guards import KLCeiling, NonFiniteGuard, OutOfMemoryAdvice
from callbacks.last_checkpoint import LastCheckpoint
from callbacks.predictions import PredictionWriter
from callbacks.preemption import Preemption
from callbacks.progress import Progress
from callbacks.report import Report
from callbacks.rule_refinement import RuleRefinement
from callbacks.schedule import Plateau, Stage
from callbacks.throughput import Throughput
from callbacks.weight_average import WeightAverage

__all__ = [
    "BeforeAfter",
    "Completions",
    "Curves",
    "Evaluation",
    "Export",
    "Gallery",
    "KLCeiling",
    "LastCheckpoint",
    "NonFiniteGuard",
    "OutOfMemoryAdvice",
    "Plateau",
    "PredictionWriter",
    "Preemption",
    "Progress",
    "Report",
    "RuleRefinement",
    "Stage",
    "Throughput",
    "WeightAverage",
]
