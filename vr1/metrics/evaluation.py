"""The evaluation of recorded answers: metrics by set and by class, and the files that they are written to.

`CocoMetrics` measures a stream of records in several processes. This measures recorded answers in one process.
"""

import csv
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vr1.errors import UserError
from vr1.matching import fold_label
from vr1.metrics.answer_schema import RecordedAnswer
from vr1.metrics.coco_eval import CocoInput, average_figures, evaluate, evaluate_classes, label_key
from vr1.metrics.referring import expression_hit
from vr1.runs.tables import figure_text

Figures = dict[str, float]
"""Values by name of the figure, such as ``map_50``; -1 where there is no ground truth to measure by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Figures of one or several sets.

    Attributes:
        average: the mean over the sets of every figure that all of them have.
        sets: figures by set: COCO's twelve with the same score for every box, as all released evaluations of this
            method have it; where the answers have scores, ``map_ranked``, ``map_50_ranked`` and ``map_75_ranked`` with
            these; ``accuracy_50`` where every question has one true box; ``records`` and ``other_labels``.
        classes: by set and category: ``map``, ``map_50``, ``ar_100`` and number of ``objects``.
    """

    average: Figures
    sets: dict[str, Figures]
    classes: dict[str, dict[str, Figures]]


def by_set(answers: Iterable[RecordedAnswer]) -> dict[str, list[RecordedAnswer]]:
    """The answers of each set, sorted by image id; only the first answer to a question counts."""
    sets: dict[str, dict[tuple[int, str, tuple[str, ...]], RecordedAnswer]] = {}
    for answer in answers:
        sets.setdefault(answer.set_name, {}).setdefault((answer.image_id, answer.image, answer.categories), answer)
    return {name: [group[key] for key in sorted(group)] for name, group in sorted(sets.items())}


def evaluate_sets(answers: Iterable[RecordedAnswer]) -> Evaluation:
    """The figures of each set and their average.

    Raises:
        UserError: there is no answer.

    Example:
        >>> from vr1.types import as_boxes
        >>> box = as_boxes([0, 0, 10, 10])
        >>> answer = RecordedAnswer(
        ...     image_id=1, image="a.jpg", image_size=(20, 20), input_size=(28, 28), categories=("cat",),
        ...     completion="cat: 0, 0, 10, 10", boxes=box, labels=("cat",), scores=np.ones(1), true_boxes=box,
        ...     true_labels=("cat",), areas=np.full(1, 100.0), crowd=np.zeros(1, bool),
        ... )
        >>> evaluation = evaluate_sets([answer])
        >>> evaluation.average["map"], evaluation.average["accuracy_50"], evaluation.classes[""]["cat"]["objects"]
        (1.0, 1.0, 1.0)
    """
    grouped = by_set(answers)
    if not grouped:
        raise UserError("evaluation: there is no answer to evaluate; give at least one")
    sets, classes = {}, {}
    for name, group in grouped.items():
        given = _coco_input(group)
        measured, classes[name] = evaluate_classes(_equal_scores(given))
        figures = {key: float(value) for key, value in measured.items()}
        if len({score for rows in given.predictions for score in rows[:, 5].tolist()}) > 1:
            ranked = evaluate(given)
            figures |= {f"{key}_ranked": float(ranked[key]) for key in _RANKED}
        hits = [expression_hit(answer.boxes, answer.true_boxes, answer.crowd, answer.categories) for answer in group]
        if None not in hits:
            figures["accuracy_50"] = sum(map(bool, hits)) / len(hits)
        figures["records"] = float(len(group))
        dropped = sum(len(answer.labels) - len(answer.rows_in_categories()) for answer in group)
        figures["other_labels"] = float(dropped)
        sets[name] = figures
    return Evaluation(average=average_figures(list(sets.values())), sets=sets, classes=classes)


def _coco_input(answers: Sequence[RecordedAnswer]) -> CocoInput:
    predictions, targets = [], []
    names: set[str] = set()
    for answer in answers:
        rows = answer.rows_in_categories()
        keys = [[label_key(answer.labels[row])] for row in rows]
        predictions.append(_columns(keys, answer.boxes[rows], answer.scores[rows, None]))
        keys = [[label_key(label)] for label in answer.true_labels]
        targets.append(_columns(keys, answer.true_boxes, answer.areas[:, None], answer.crowd[:, None]))
        names.update(answer.categories)
    spellings = {label_key(name): name for name in sorted(names)}
    return CocoInput(predictions=predictions, targets=targets, spellings=spellings)


def _equal_scores(given: CocoInput) -> CocoInput:
    """The same boxes with one score for all, in the order of each answer."""
    same = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    return replace(given, predictions=[rows * same for rows in given.predictions])


def _columns(keys: list[list[int]], *columns: NDArray[np.generic]) -> NDArray[np.float64]:
    first = np.asarray(keys, np.float64).reshape(len(keys), 1)
    return np.hstack([first, *(np.asarray(part, np.float64) for part in columns)])


_COLUMNS = ("map", "map_50", "map_75", "map_ranked", "ar_100", "accuracy_50", "records")
# The figures that depend on the scores of the boxes.
_RANKED = ("map", "map_50", "map_75")


def write_evaluation(
    folder: Path, answers: Sequence[RecordedAnswer], category_ids: dict[str, int] | None = None
) -> Evaluation:
    """Evaluate answers and write ``metrics.json``, ``per_set.csv``, ``per_class.csv`` and COCO's files of each set.

    COCO's files are ``results.json`` and the ``ground_truth.json`` that it goes with, in a folder of the set's name
    where there are several sets. Any COCO tool loads the pair; it ranks the boxes by their scores, and so computes
    ``map_ranked``.

    Args:
        folder: created if it is missing; files of these names are replaced.
        answers: the recorded answers.
        category_ids: COCO's ids by category name, for results that go with other annotations; None counts from 1.

    Returns:
        The figures.

    Raises:
        UserError: there is no answer, or a category has no id.
        OSError: a file cannot be written.
    """
    evaluation = evaluate_sets(answers)
    folder.mkdir(parents=True, exist_ok=True)
    for name, group in by_set(answers).items():
        set_folder = folder / _folder_name(name) if len(evaluation.sets) > 1 else folder
        set_folder.mkdir(exist_ok=True)
        truth, results = coco_documents(group, category_ids)
        (set_folder / "ground_truth.json").write_text(json.dumps(truth))
        (set_folder / "results.json").write_text(json.dumps(results))
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
    answers: Sequence[RecordedAnswer], category_ids: dict[str, int] | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """COCO's ground truth and results of one set; several questions about one image become one image.

    Raises:
        UserError: a category has no id.
    """
    names = sorted({fold_label(name): name for answer in answers for name in answer.categories}.values())
    given = {fold_label(name): number for name, number in (category_ids or {}).items()}
    ids = given if category_ids else {fold_label(name): number for number, name in enumerate(names, start=1)}
    if missing := [name for name in names if fold_label(name) not in ids]:
        raise UserError(f"category {missing[0]} is not among the {len(ids)} of the given annotations; give others")
    numbers = _image_numbers(answers)
    images: dict[int, dict[str, Any]] = {}
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for answer in answers:
        number = numbers[answer.image_id, answer.image]
        width, height = answer.image_size
        images[number] = {"id": number, "file_name": answer.image, "width": width, "height": height}
        for row, label in enumerate(answer.true_labels):
            # pycocotools takes an annotation id of 0 for "no match".
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": ids[fold_label(label)],
                    "bbox": _xywh(answer.true_boxes[row]),
                    "area": float(answer.areas[row]),
                    "iscrowd": int(answer.crowd[row]),
                }
            )
        for row in answer.rows_in_categories():
            results.append(
                {
                    "image_id": number,
                    "category_id": ids[fold_label(answer.labels[row])],
                    "bbox": _xywh(answer.boxes[row]),
                    "score": float(answer.scores[row]),
                }
            )
    categories = [{"id": ids[fold_label(name)], "name": name} for name in names]
    return {"images": list(images.values()), "categories": categories, "annotations": annotations}, results


def table_text(evaluation: Evaluation) -> str:
    """The sets and their average as a table to print: fractions with three digits, as COCO's own tools print them."""
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
    return f"{value:.0f}" if key == "records" else figure_text(value)


def _set_rows(evaluation: Evaluation) -> list[tuple[Any, ...]]:
    rows = [*evaluation.sets.items(), ("average", evaluation.average)]
    return [(name or "all", *(figures.get(key, -1.0) for key in evaluation.average)) for name, figures in rows]


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _folder_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "unnamed"


def _image_numbers(answers: Sequence[RecordedAnswer]) -> dict[tuple[int, str], int]:
    """COCO's image id of each image: its own, or numbers from 1 where two images of the set share one."""
    images = list(dict.fromkeys((answer.image_id, answer.image) for answer in answers))
    own = [image_id for image_id, _ in images]
    return dict(zip(images, own if len(set(own)) == len(own) else range(1, len(own) + 1), strict=True))


def _xywh(box: Any) -> list[float]:
    x1, y1, x2, y2 = map(float, box)
    return [x1, y1, x2 - x1, y2 - y1]
