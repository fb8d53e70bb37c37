"""COCO average precision and recall of answers, as pycocotools computes them.

Differences from torchmetrics' `MeanAveragePrecision`: labels are texts, IoU thresholds are exactly COCO's, and the
result depends neither on the order of the records nor on the number of processes.

Shape letters: R records, N predicted boxes, M ground-truth boxes, K categories.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from vr1.errors import UserError
from vr1.metrics.coco_eval import (
    CocoInput,
    average_figures,
    evaluate,
    evaluate_classes,
    label_key,
    rows_in_categories,
    text_key,
)
from vr1.metrics.referring import expression_hit
from vr1.types import DetectionRecord, Detections

# Columns of the states. A record: key, set key, image id, N, M, dropped boxes, hit (1 or 0; -1 if the question is no
# referring expression). A prediction: label key, box, score. A target: label key, box, area, crowd.
_RECORD, _PREDICTION, _TARGET = 7, 6, 7


class CocoMetrics(Metric):
    """COCO's twelve metrics of detections against the ground truth of their records.

    Labels are compared as in `vr1.matching`: without case, surrounding spaces and a final full stop. A predicted box
    whose label is none of the record's categories is dropped, as COCO does, and counted in ``other_labels``. At most
    100 boxes of one category on one image count: those with the highest scores, and among equal scores the first in the
    answer. Crowd regions and areas are handled as in COCO.

    Each data set (``DetectionRecord.set_name``) is evaluated separately.

    Where scores are equal, precision depends on the order of the images: records are sorted by ``image_id``, as in
    pycocotools. A record that occurs twice (a distributed sampler repeats some to fill the last batch) counts once,
    with its first answer.

    Source: https://cocodataset.org/#detection-eval; pycocotools.cocoeval.

    Example:
        >>> import numpy as np
        >>> from PIL import Image
        >>> from vr1.types import as_boxes
        >>> record = DetectionRecord(
        ...     image=Image.new("RGB", (100, 100)), boxes_xyxy=as_boxes([[10, 10, 50, 50]]), labels=("cat",),
        ...     categories=("cat", "dog"), image_id=1, origin="example",
        ...     areas=np.array([1600.0]), crowd=np.array([False]),
        ... )
        >>> answer = Detections(
        ...     boxes_xyxy=as_boxes([[10, 10, 50, 45]]), labels=("Cat",), scores=np.array([0.99]), well_formed=True,
        ...     valid=True,
        ... )
        >>> metrics = CocoMetrics()
        >>> metrics.update([answer], [record])
        >>> result = metrics.compute()
        >>> round(float(result["map"]), 3), float(result["map_75"]), metrics.per_class()["cat"]["objects"]
        (0.8, 1.0, 1.0)
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    records: list[Tensor]
    predictions: list[Tensor]
    targets: list[Tensor]
    names: list[Tensor]
    sets: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("records", "predictions", "targets", "names", "sets"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self._evaluated: dict[str, CocoInput] = {}
        self._sent: set[tuple[str, str]] = set()

    @property
    def dtype(self) -> torch.dtype:
        """Float64, so that the empty state of a process without records has the dtype of the others."""
        return torch.float64

    def update(self, detections: Sequence[Detections], records: Sequence[DetectionRecord]) -> None:
        """Add the answers to some records.

        Args:
            detections: one for each record, boxes ``[N, 4]`` in image pixels.
            records: the questions and their ground truth.

        Raises:
            UserError: the numbers of answers and records differ.
        """
        if len(detections) != len(records):
            raise UserError(
                f"CocoMetrics: {len(detections)} answers to {len(records)} records; give one for each record"
            )
        for answer, record in zip(detections, records, strict=True):
            assert np.isfinite(answer.boxes_xyxy).all(), "pycocotools treats NaN as a perfect overlap"
            counted = rows_in_categories(answer.labels, record.categories)
            labels = [label_key(answer.labels[row]) for row in counted]
            self._append("predictions", labels, answer.boxes_xyxy[counted], answer.scores[counted])
            labels = [label_key(label) for label in record.labels]
            self._append("targets", labels, record.boxes_xyxy, record.areas, record.crowd)
            hit = expression_hit(answer.boxes_xyxy, record.boxes_xyxy, record.crowd, record.categories)
            counts = [len(counted), len(record.labels), len(answer) - len(counted), -1 if hit is None else int(hit)]
            self._append("records", [_record_key(record)], [[text_key(record.set_name), record.image_id, *counts]])
            self._send_names("names", record.categories)
            self._send_names("sets", [record.set_name])

    def compute(self) -> dict[str, Tensor]:
        """COCO's metrics over all records so far, as scalar tensors.

        Returns:
            ``map``, ``map_50``, ``map_75``, ``map_small``, ``map_medium``, ``map_large``, ``ar_1``, ``ar_10``,
            ``ar_100``, ``ar_small``, ``ar_medium``, ``ar_large`` (-1, as in COCO, without ground truth for it),
            ``accuracy_50`` if every question has one category and one true box (the share of answers whose first box
            has an IoU of at least 0.5), ``records`` and ``other_labels``. For several sets: the mean of each metric
            that all sets have, the sum of the last two, and the metrics of each set as ``set/metric``.
        """
        records = _rows(self.records, _RECORD)
        predictions = _split(_rows(self.predictions, _PREDICTION), records[:, 3])
        targets = _split(_rows(self.targets, _TARGET), records[:, 4])
        spellings = {label_key(name): name for name in self._texts("names")}
        order = _first_by_image(records)
        sets: dict[str, dict[str, float]] = {}
        self._evaluated = {}
        for name in self._texts("sets") or [""]:
            rows = [row for row in order if records[row, 1] == text_key(name)]
            self._evaluated[name] = CocoInput(
                predictions=[predictions[row] for row in rows],
                targets=[targets[row] for row in rows],
                spellings=spellings,
            )
            sets[name] = {key: float(value) for key, value in evaluate(self._evaluated[name]).items()}
            if rows and (hits := records[rows, 6]).min() >= 0:
                sets[name]["accuracy_50"] = float(hits.mean())
            sets[name] |= {"records": float(len(rows)), "other_labels": float(records[rows, 5].sum())}
        result = average_figures(list(sets.values()))
        for name in ("records", "other_labels"):
            result[name] = sum(figures[name] for figures in sets.values())
        if len(sets) > 1:
            result |= {f"{name}/{key}": value for name, figures in sets.items() for key, value in figures.items()}
        return {name: torch.tensor(value) for name, value in result.items()}

    def per_class(self) -> dict[str, dict[str, float]]:
        """``map``, ``map_50``, ``ar_100`` and number of ``objects`` (no crowd regions) by category, sorted by name.

        For several sets the names are ``set/category``.

        This runs the evaluation again. With several processes, call `compute` on all of them first; after that, one
        process can call this alone.
        """
        self.compute()
        return {
            f"{name}/{category}" if len(self._evaluated) > 1 else category: figures
            for name, given in self._evaluated.items()
            for category, figures in evaluate_classes(given)[1].items()
        }

    def reset(self) -> None:
        """Remove all records."""
        super().reset()
        self._sent = set()
        self._evaluated = {}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one result of `compute`, or a list of them over time."""
        return self._plot(val, ax)

    def _append(self, state: str, keys: list[int], *columns: Any) -> None:
        # States are flat, so that an empty one has the same number of dimensions in every process.
        parts = [np.asarray(part, np.float64).reshape(len(keys), -1) for part in (keys, *columns) if len(keys)]
        flat = np.concatenate(parts, axis=1).ravel() if parts else np.zeros(0)
        getattr(self, state).append(torch.from_numpy(flat).to(self.device))

    def _send_names(self, state: str, names: Sequence[str]) -> None:
        new = [name for name in dict.fromkeys(names) if (state, name) not in self._sent]
        if new:
            data = "".join(f"{name}\0" for name in new).encode()
            getattr(self, state).append(torch.tensor(list(data), dtype=torch.float64, device=self.device))
            self._sent.update((state, name) for name in new)

    def _texts(self, state: str) -> list[str]:
        """The names of all processes, each once, sorted."""
        data = bytes(_rows(getattr(self, state), 1).ravel().astype(np.uint8).tolist()).decode()
        return sorted(set(data.split("\0")[:-1]))


def _record_key(record: DetectionRecord) -> int:
    return text_key("\0".join([record.origin, str(record.image_id), *record.categories]))


def _rows(state: list[Tensor] | Tensor, columns: int) -> NDArray[np.float64]:
    parts = [state] if isinstance(state, Tensor) else state
    flat = [part.cpu().numpy() for part in parts] or [np.zeros(0)]
    return np.concatenate(flat).astype(np.float64).reshape(-1, columns)


def _split(rows: NDArray[np.float64], counts: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    return np.split(rows, np.cumsum(counts.astype(np.int64)))[:-1]


def _first_by_image(records: NDArray[np.float64]) -> list[int]:
    """Rows of the records, sorted by image id; only the first row of each record."""
    first = {key: row for row, key in reversed(list(enumerate(records[:, 0].tolist())))}
    return sorted(first.values(), key=lambda row: (records[row, 2], records[row, 0]))
