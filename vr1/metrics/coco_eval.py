"""COCO's evaluation of boxes in arrays, by faster-coco-eval through torchmetrics.

Shape letters: N predicted boxes and M ground-truth boxes of one record, K categories.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from vr1.matching import fold_label


@lru_cache(maxsize=4096)
def label_key(label: str) -> int:
    """A number for a label; equal labels have the same number.

    Example:
        >>> label_key("Cat.") == label_key("cat") != label_key("dog")
        True
    """
    return text_key(fold_label(label))


def text_key(text: str) -> int:
    """A hash of a text, the same in all processes; below 2**52, so that float64 holds it exactly."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 12


def rows_in_categories(labels: Sequence[str], categories: Sequence[str]) -> list[int]:
    """Rows of the labels that are one of the categories; COCO drops boxes with any other label.

    Example:
        >>> rows_in_categories(["Cat.", "cow", "dog"], ["cat", "dog"])
        [0, 2]
    """
    known = {fold_label(name) for name in categories}
    return [row for row, label in enumerate(labels) if fold_label(label) in known]


FIGURES = {
    "map": "map",
    "map_50": "map_50",
    "map_75": "map_75",
    "map_small": "map_small",
    "map_medium": "map_medium",
    "map_large": "map_large",
    "ar_1": "mar_1",
    "ar_10": "mar_10",
    "ar_100": "mar_100",
    "ar_small": "mar_small",
    "ar_medium": "mar_medium",
    "ar_large": "mar_large",
}
"""COCO's twelve metrics: name here, name in torchmetrics."""

_LEAST_AREA = 1e-12
# The evaluation visits every category on every image. More categories than this are referring expressions.
_MOST_CATEGORIES = 1500
_ONE = "any expression"
_Rows = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CocoInput:
    """The input of one evaluation.

    Attributes:
        predictions: for each record ``[N, 6]``: label key, box (x1, y1, x2, y2 in pixels), score.
        targets: for each record ``[M, 7]``: label key, box, area, crowd.
        spellings: names of the K categories by label key.
    """

    predictions: Sequence[_Rows]
    targets: Sequence[_Rows]
    spellings: dict[int, str]


def evaluate(given: CocoInput) -> dict[str, Tensor]:
    """COCO's twelve metrics as scalar tensors; -1 without ground truth for it.

    More than 1500 categories are referring expressions and are evaluated as one category.
    """
    given = _as_one_category(given)
    return _figures(_run(given, extended_summary=False)) if given.targets else _unmeasured()


def evaluate_classes(given: CocoInput) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """The result of `evaluate`, and metrics by category, from one evaluation.

    Returns:
        COCO's twelve metrics; and by category ``map``, ``map_50``, ``ar_100`` and number of ``objects`` (without crowd
        regions).
    """
    given = _as_one_category(given)
    if not any(map(len, (*given.targets, *given.predictions))):
        return _unmeasured(), {}
    summary = _run(given, extended_summary=True)
    precision, recall = summary["precision"][:, :, :, 0, -1], summary["recall"][:, :, 0, -1]
    objects = np.concatenate([rows[rows[:, 6] == 0, 0] for rows in given.targets])
    spellings = list(given.spellings.items())
    table = {}
    for column, label_id in enumerate(summary["classes"].reshape(-1).tolist()):
        key, name = spellings[label_id]
        table[name] = {
            "map": _mean(precision[:, :, column]),
            "map_50": _mean(precision[0, :, column]),
            "ar_100": _mean(recall[:, column]),
            "objects": float((objects == key).sum()),
        }
    return _figures(summary), table


def average_figures(sets: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over several sets of every metric that all sets have.

    Values of -1 (no ground truth, such as no large objects) are left out.

    Example:
        >>> average_figures([{"map": 0.25, "map_large": -1.0}, {"map": 0.75, "map_large": 0.5, "accuracy_50": 1.0}])
        {'map': 0.5, 'map_large': 0.5}
    """
    average = {}
    for name in sets[0]:
        values = [figures[name] for figures in sets if name in figures]
        if len(values) < len(sets):
            continue
        measured = [value for value in values if value > -1]
        average[name] = sum(measured) / len(measured) if measured else -1.0
    return average


def _unmeasured() -> dict[str, Tensor]:
    return dict.fromkeys(FIGURES, torch.tensor(-1.0))


def _figures(summary: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: summary[key].reshape(()) for name, key in FIGURES.items()}


def _as_one_category(given: CocoInput) -> CocoInput:
    """The same boxes under one category if there are too many; labels were compared before."""
    if len(given.spellings) <= _MOST_CATEGORIES:
        return given

    def merged(rows: Sequence[_Rows]) -> list[_Rows]:
        return [np.hstack([np.zeros((len(part), 1)), part[:, 1:]]) for part in rows]

    return CocoInput(predictions=merged(given.predictions), targets=merged(given.targets), spellings={0: _ONE})


def _run(given: CocoInput, extended_summary: bool) -> dict[str, Tensor]:
    label_ids = {key: row for row, key in enumerate(given.spellings)}
    metric = MeanAveragePrecision(
        # The defaults of torchmetrics are rounded to float32, so that an IoU of exactly 0.55 or 0.6 is missed.
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0.0, 1.0, 101).tolist(),
        extended_summary=extended_summary,
        backend="faster_coco_eval",
        sync_on_compute=False,  # the records are already those of all processes
    )
    metric.warn_on_many_detections = False
    metric.update(
        [_prediction(rows, label_ids) for rows in given.predictions],
        [_target(rows, label_ids) for rows in given.targets],
    )
    return metric.compute()


def _prediction(rows: _Rows, label_ids: dict[int, int]) -> dict[str, Tensor]:
    labels = [label_ids[int(key)] for key in rows[:, 0]]
    return {
        "boxes": torch.from_numpy(rows[:, 1:5].copy()),
        "scores": torch.from_numpy(rows[:, 5].copy()),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def _target(rows: _Rows, label_ids: dict[int, int]) -> dict[str, Tensor]:
    labels = [label_ids[int(key)] for key in rows[:, 0]]
    return {
        "boxes": torch.from_numpy(rows[:, 1:5].copy()),
        "labels": torch.tensor(labels, dtype=torch.int64),
        # torchmetrics treats an area of 0 as unknown; COCO counts the object as small.
        "area": torch.from_numpy(np.maximum(rows[:, 5], _LEAST_AREA)),
        "iscrowd": torch.from_numpy(rows[:, 6].astype(np.int64)),
    }


def _mean(values: Tensor) -> float:
    """Mean of the values that are not -1 (no ground truth); -1 if there are none."""
    measured = values[values > -1]
    return float(measured.mean()) if len(measured) else -1.0
