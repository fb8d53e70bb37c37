"""An evaluation as plain rows: what was asked, what is there, what was answered; and its figures by set and class.

Where `CocoMetrics` measures a stream of records in all processes at once, this measures rows that were kept: it knows
several sets and reports each on its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vr1.matching import fold_label
from vr1.metrics.coco_eval import CocoInput, average_figures, evaluate_classes
from vr1.metrics.label_keys import label_key
from vr1.metrics.referring import expression_hit
from vr1.records import Boxes

Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evaluated:
    """One answer and its ground truth (shape letters: N predicted boxes, M true boxes), boxes in image pixels.

    Attributes:
        set_name: the data set, empty where there is only one.
        image_id: unique within the set.
        image: where the image comes from.
        image_size: width and height in pixels.
        categories: what was asked for.
        boxes: ``[N, 4]`` predicted boxes.
        labels: N labels.
        scores: ``[N]`` confidences.
        true_boxes: ``[M, 4]``, crowd regions included.
        true_labels: M labels.
        areas: ``[M]`` object areas in square pixels.
        crowd: ``[M]`` bool.
    """

    set_name: str
    image_id: int
    image: str
    image_size: tuple[int, int]
    categories: tuple[str, ...]
    boxes: Boxes
    labels: tuple[str, ...]
    scores: NDArray[np.float64]
    true_boxes: Boxes
    true_labels: tuple[str, ...]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]

    def asked_rows(self) -> list[int]:
        """Rows of the predicted boxes that count; see `asked_rows`."""
        return asked_rows(self.labels, self.categories)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Figures of one or several sets.

    Attributes:
        average: the mean over the sets of every figure that all of them have.
        sets: figures by set: COCO's twelve, ``accuracy_50`` where every question has one true box, ``records`` and
            ``other_labels``.
        classes: by set and category: ``map``, ``map_50``, ``ar_100`` and number of ``objects``.
    """

    average: Figures
    sets: dict[str, Figures]
    classes: dict[str, dict[str, Figures]]


def asked_rows(labels: Sequence[str], categories: Sequence[str]) -> list[int]:
    """Rows of the labels that are among what was asked for; COCO has no place for boxes of any other.

    Example:
        >>> asked_rows(["Cat.", "cow", "dog"], ["cat", "dog"])
        [0, 2]
    """
    asked = {fold_label(name) for name in categories}
    return [row for row, label in enumerate(labels) if fold_label(label) in asked]


def by_set(rows: Iterable[Evaluated]) -> dict[str, list[Evaluated]]:
    """The rows of each set by image id, every question once: its first answer counts."""
    sets: dict[str, dict[tuple[int, str, tuple[str, ...]], Evaluated]] = {}
    for row in rows:
        sets.setdefault(row.set_name, {}).setdefault((row.image_id, row.image, row.categories), row)
    return {name: [found[key] for key in sorted(found)] for name, found in sorted(sets.items())}


def evaluate_sets(rows: Iterable[Evaluated]) -> Evaluation:
    """The figures of all rows, set by set.

    Raises:
        ValueError: if there is no row.

    Example:
        >>> from vr1.records import as_boxes
        >>> box = as_boxes([0, 0, 10, 10])
        >>> row = Evaluated(
        ...     set_name="", image_id=1, image="a.jpg", image_size=(20, 20), categories=("cat",), boxes=box,
        ...     labels=("cat",), scores=np.ones(1), true_boxes=box, true_labels=("cat",), areas=np.full(1, 100.0),
        ...     crowd=np.zeros(1, bool),
        ... )
        >>> found = evaluate_sets([row])
        >>> found.average["map"], found.average["accuracy_50"], found.classes[""]["cat"]["objects"]
        (1.0, 1.0, 1.0)
    """
    grouped = by_set(rows)
    if not grouped:
        raise ValueError("evaluation: there is no answer to evaluate; give at least one")
    sets, classes = {}, {}
    for name, found in grouped.items():
        measured, classes[name] = evaluate_classes(_coco_input(found))
        figures = {key: float(value) for key, value in measured.items()}
        hits = [expression_hit(row.boxes, row.true_boxes, row.crowd, row.categories) for row in found]
        if None not in hits:
            figures["accuracy_50"] = sum(map(bool, hits)) / len(hits)
        figures["records"] = float(len(found))
        figures["other_labels"] = float(sum(len(row.labels) - len(row.asked_rows()) for row in found))
        sets[name] = figures
    return Evaluation(average=average_figures(list(sets.values())), sets=sets, classes=classes)


def _coco_input(rows: Sequence[Evaluated]) -> CocoInput:
    predictions, targets = [], []
    names: set[str] = set()
    for row in rows:
        kept = row.asked_rows()
        keys = [[label_key(row.labels[index])] for index in kept]
        predictions.append(_columns(keys, row.boxes[kept], row.scores[kept, None]))
        keys = [[label_key(label)] for label in row.true_labels]
        targets.append(_columns(keys, row.true_boxes, row.areas[:, None], row.crowd[:, None]))
        names.update(row.categories)
    spellings = {label_key(name): name for name in sorted(names)}
    return CocoInput(predictions=predictions, targets=targets, spellings=spellings)


def _columns(keys: list[list[int]], *columns: NDArray[np.generic]) -> NDArray[np.float64]:
    first = np.asarray(keys, np.float64).reshape(len(keys), 1)
    return np.hstack([first, *(np.asarray(part, np.float64) for part in columns)])
