"""An evaluation as rows of questions, truth and answers: its metrics by set and class, and the files it is written to.

Where `CocoMetrics` measures a stream of records in all processes at once, this measures rows that were kept: it knows
several sets and reports each on its own.
"""

import csv
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vr1.errors import UserError
from vr1.matching import fold_label
from vr1.metrics.coco_eval import CocoInput, average_figures, evaluate_classes, label_key
from vr1.metrics.referring import expression_hit
from vr1.types import Boxes

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
        UserError: if there is no row.

    Example:
        >>> from vr1.types import as_boxes
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
        raise UserError("evaluation: there is no answer to evaluate; give at least one")
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


_COLUMNS = ("map", "map_50", "map_75", "ar_100", "accuracy_50", "records")


def write_evaluation(folder: Path, rows: Sequence[Evaluated], category_ids: dict[str, int] | None = None) -> Evaluation:
    """Evaluate rows and write ``metrics.json``, ``per_set.csv``, ``per_class.csv``, and for each set COCO's files.

    These are ``results.json`` and the ``ground_truth.json`` that it goes with, in a folder of the set's name where
    there are several sets: any COCO tool loads the pair and finds the same figures.

    Args:
        folder: made if it is missing; files of these names are replaced.
        rows: the answers.
        category_ids: COCO's ids by category name, for results that go with other annotations; from 1 where left out.

    Returns:
        The figures.

    Raises:
        UserError: if there is no row, or a category has no id.
        OSError: if a file cannot be written.
    """
    evaluation = evaluate_sets(rows)
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in by_set(rows).items():
        place = folder / _folder_name(name) if len(evaluation.sets) > 1 else folder
        place.mkdir(exist_ok=True)
        truth, results = coco_documents(found, category_ids)
        (place / "ground_truth.json").write_text(json.dumps(truth))
        (place / "results.json").write_text(json.dumps(results))
    figures = {"average": evaluation.average, "sets": evaluation.sets, "classes": evaluation.classes}
    (folder / "metrics.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False), encoding="utf-8")
    _write_csv(folder / "per_set.csv", [("set", *evaluation.average), *_set_rows(evaluation)])
    classes = [
        (name, category, *figures.values())
        for name, table in evaluation.classes.items()
        for category, figures in table.items()
    ]
    _write_csv(folder / "per_class.csv", [("set", "category", "map", "map_50", "ar_100", "objects"), *classes])
    return evaluation


def coco_documents(
    rows: Sequence[Evaluated], category_ids: dict[str, int] | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """COCO's ground truth and results of the rows of one set; several questions about one image are one image there.

    Raises:
        UserError: if a category has no id.
    """
    names = sorted({fold_label(name): name for row in rows for name in row.categories}.values())
    given = {fold_label(name): number for name, number in (category_ids or {}).items()}
    ids = given if category_ids else {fold_label(name): number for number, name in enumerate(names, start=1)}
    if missing := [name for name in names if fold_label(name) not in ids]:
        raise UserError(f"category {missing[0]} is not among the {len(ids)} of the given annotations; give others")
    numbers = _image_numbers(rows)
    images: dict[int, dict[str, Any]] = {}
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for row in rows:
        number = numbers[row.image_id, row.image]
        width, height = row.image_size
        images[number] = {"id": number, "file_name": row.image, "width": width, "height": height}
        for index, label in enumerate(row.true_labels):
            # An id of 0 is taken for no match by pycocotools.
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": ids[fold_label(label)],
                    "bbox": _xywh(row.true_boxes[index]),
                    "area": float(row.areas[index]),
                    "iscrowd": int(row.crowd[index]),
                }
            )
        for index in row.asked_rows():
            results.append(
                {
                    "image_id": number,
                    "category_id": ids[fold_label(row.labels[index])],
                    "bbox": _xywh(row.boxes[index]),
                    "score": float(row.scores[index]),
                }
            )
    categories = [{"id": ids[fold_label(name)], "name": name} for name in names]
    return {"images": list(images.values()), "categories": categories, "annotations": annotations}, results


def table_text(evaluation: Evaluation) -> str:
    """The sets and their average as a table to print; percent, as papers have it."""
    head = [name for name in _COLUMNS if any(name in figures for figures in evaluation.sets.values())]
    rows = [*evaluation.sets.items()]
    if len(rows) > 1:
        rows.append(("average", evaluation.average))
    width = max(len(name) for name, _ in [("set", {}), *rows])
    lines = [f"{'set':<{width}}" + "".join(f"{name:>13}" for name in head)]
    lines += [
        f"{name or 'all':<{width}}" + "".join(f"{_shown(figures, key):>13}" for key in head) for name, figures in rows
    ]
    return "\n".join(lines)


def _shown(figures: Figures, key: str) -> str:
    value = figures.get(key, -1.0)
    if value < 0:
        return "-"
    return f"{value:.0f}" if key == "records" else f"{100 * value:.2f}"


def _set_rows(evaluation: Evaluation) -> list[tuple[Any, ...]]:
    rows = [*evaluation.sets.items(), ("average", evaluation.average)]
    return [(name or "all", *(figures.get(key, -1.0) for key in evaluation.average)) for name, figures in rows]


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _folder_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "unnamed"


def _image_numbers(rows: Sequence[Evaluated]) -> dict[tuple[int, str], int]:
    """COCO's image id of each image: its own, or numbers from 1 where two images of the set share one."""
    images = list(dict.fromkeys((row.image_id, row.image) for row in rows))
    own = [image_id for image_id, _ in images]
    return dict(zip(images, own if len(set(own)) == len(own) else range(1, len(own) + 1), strict=True))


def _xywh(box: Any) -> list[float]:
    x1, y1, x2, y2 = map(float, box)
    return [x1, y1, x2 - x1, y2 - y1]
