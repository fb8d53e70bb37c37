"""Lightning callbacks of vr1, for a trainer's ``callbacks`` in Python or, by ``class_path``, in YAML."""

from callbacks.before_after import BeforeAfter
from callbacks.completions import Completions
from callbacks.curves import Curves
from callbacks.evaluation import Evaluation
from callbacks.export import Export
from callbacks.gallery import Gallery
from callbacks.plateau import Plateau
from callbacks.predictions import PredictionWriter
from callbacks.progress import Progress
from callbacks.report import Report
from callbacks.rule_refinement import RuleRefinement
from callbacks.stages import Stage

__all__ = [
    "BeforeAfter",
    "Completions",
    "Curves",
    "Evaluation",
    "Export",
    "Gallery",
    "Plateau",
    "PredictionWriter",
    "Progress",
    "Report",
    "RuleRefinement",
    "Stage",
]
