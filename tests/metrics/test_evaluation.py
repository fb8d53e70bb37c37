"""The files of an evaluation, read by pycocotools, and the figures of recorded answers."""

import csv
import json
import re

import numpy as np
import pytest
from pycocotools.coco import COCO

from tests.metrics.test_coco import NAMES, answers, blank_records, reference, sound
from tests.shared_data import SHARED, needs_shared
from vr1.commands.score.command import main
from vr1.data.annotated import AnnotatedSource
from vr1.data.coco import coco_splits
from vr1.data.questions import Questions
from vr1.metrics.answer_schema import RecordedAnswer
from vr1.metrics.coco_eval import CocoInput, average_figures, evaluate, evaluate_classes
from vr1.metrics.evaluation import table_text, write_evaluation
from vr1.types import Detections


def rows_of(document, results, set_name=""):
    """Recorded answers as an evaluation has them: written as JSON and read again."""
    records = blank_records(document)
    found = answers(document, results, [record.image_id for record in records])
    lines = []
    for record, detections in zip(records, found, strict=True):
        answer = RecordedAnswer.from_record(record, detections, "", "", record.image_size)
        lines.append(json.loads(json.dumps(answer.to_json() | {"set": set_name})))
    return [RecordedAnswer.from_json(line, number) for number, line in enumerate(lines, start=1)]


@pytest.fixture(scope="module")
def detections():
    folder = SHARED / "cartucho_map"
    document = sound(json.loads((folder / "instances_all.json").read_text()))
    return document, json.loads((folder / "detections_all.json").read_text())


@needs_shared
def test_any_coco_tool_finds_the_same_figures(detections, tmp_path):
    document, results = detections
    found = write_evaluation(tmp_path, rows_of(document, results))
    ranked, expected = reference(document, results), reference(document, [{**row, "score": 0.99} for row in results])
    written = json.loads((tmp_path / "ground_truth.json").read_text())
    again = reference(written, json.loads((tmp_path / "results.json").read_text()))
    for name in NAMES:
        assert found.sets[""][name] == pytest.approx(expected[name], abs=1e-6)
        assert again[name] == pytest.approx(ranked[name], abs=1e-6)
    for name in ("map", "map_50", "map_75"):
        assert found.sets[""][f"{name}_ranked"] == pytest.approx(ranked[name], abs=1e-6)
        assert ranked[name] > expected[name] + 0.01, "the scores of a detector are worth something"
    assert COCO(str(tmp_path / "ground_truth.json")).loadRes(str(tmp_path / "results.json"))
    assert json.loads((tmp_path / "metrics.json").read_text())["sets"][""]["map"] == found.average["map"]
    with (tmp_path / "per_class.csv").open() as file:
        table = list(csv.DictReader(file))
    measured = [float(row["map"]) for row in table if float(row["map"]) >= 0]
    assert np.mean(measured) == pytest.approx(expected["map"], abs=1e-6)
    assert sum(float(row["objects"]) for row in table) == sum(not a.get("iscrowd") for a in document["annotations"])


@needs_shared
def test_ids_of_other_annotations(detections, tmp_path):
    document, results = detections
    ids = {category["name"]: category["id"] for category in document["categories"]}
    write_evaluation(tmp_path, rows_of(document, results), ids)
    written = json.loads((tmp_path / "results.json").read_text())
    assert reference(document, written)["map"] == pytest.approx(reference(document, results)["map"], abs=1e-6)
    with pytest.raises(ValueError, match="is not among the 1 of the given annotations"):
        write_evaluation(tmp_path, rows_of(document, results), {"no such thing": 1})


@needs_shared
def test_every_set_and_the_average(detections, tmp_path):
    document, results = detections
    parts = {}
    for name, keep in (("odd one", lambda number: number % 2), ("even", lambda number: number % 2 == 0)):
        images = [image for image in document["images"] if keep(image["id"])]
        numbers = {image["id"] for image in images}
        part = document | {
            "images": images,
            "annotations": [a for a in document["annotations"] if a["image_id"] in numbers],
        }
        parts[name] = part, [result for result in results if result["image_id"] in numbers]
    rows = [row for name, (part, found) in parts.items() for row in rows_of(part, found, name)]
    found = write_evaluation(tmp_path, rows)
    expected = {
        name: reference(part, [{**row, "score": 0.99} for row in of_part]) for name, (part, of_part) in parts.items()
    }
    ranked = [reference(*part)["map"] for part in parts.values()]
    assert found.average["map_ranked"] == pytest.approx(np.mean(ranked), abs=1e-6)
    for name in NAMES:
        for part in parts:
            assert found.sets[part][name] == pytest.approx(expected[part][name], abs=1e-6)
        assert found.average[name] == pytest.approx(np.mean([expected[part][name] for part in parts]), abs=1e-6)
    assert (tmp_path / "odd_one" / "results.json").is_file()
    table = table_text(found)
    assert [line.split()[0] for line in table.splitlines()] == ["set", "even", "odd", "average"]
    figures = re.findall(r"\d+\.\d*", table)
    assert len(figures) >= 12
    assert all(re.fullmatch(r"[01]\.\d{3}", text) for text in figures), "fractions with three digits, as in every table"
    with (tmp_path / "per_set.csv").open() as file:
        assert [row["set"] for row in csv.DictReader(file)] == ["even", "odd one", "average"]


@needs_shared
@pytest.mark.parametrize("name", ["raccoon", "mushrooms", "packages", "thermal"])
@pytest.mark.parametrize("task", ["detection", "grounding"])
def test_the_truth_as_answer_is_perfect(name, task, tmp_path):
    source = AnnotatedSource(*coco_splits(SHARED / name)["test"], questions=Questions(task=task))
    perfect = []
    for record in source:
        exact = Detections(
            boxes_xyxy=record.boxes_xyxy,
            labels=record.labels,
            scores=np.full(len(record.labels), 0.99),
            well_formed=True,
            valid=True,
        )
        perfect.append(RecordedAnswer.from_record(record, exact, "", "", record.image_size))
    found = write_evaluation(tmp_path, perfect)
    assert found.average["map"] == pytest.approx(1.0)
    truth = json.loads((tmp_path / "ground_truth.json").read_text())
    names = [image["file_name"] for image in truth["images"]]
    assert len(names) == len(set(names)) == source.report.images
    assert reference(truth, json.loads((tmp_path / "results.json").read_text()))["map"] == pytest.approx(1.0)


def grounding_lines():
    """Two questions about one image, one about another, in Qwen's format."""

    def line(image_id, category, boxes, found, **more):
        items = [{"bbox_2d": box, "label": category} for box in found]
        return {
            "image_id": image_id,
            "image": f"{image_id}.jpg",
            "categories": [category],
            "completion": json.dumps(items),
            "boxes_xyxy": boxes,
            "labels": [category] * len(boxes),
            "image_size": [100, 100],
            "input_size": [100, 100],
            **more,
        }

    return [
        line(3, "cat", [[0, 0, 40, 40], [50, 50, 90, 90]], [[0, 0, 40, 38]]),
        line(3, "dog", [[10, 60, 30, 90]], [[10, 60, 30, 90], [60, 10, 90, 30]]),
        line(8, "cat", [[20, 20, 80, 80]], [[22, 20, 80, 80]], crowd=[{"box_xyxy": [0, 0, 9, 9], "label": "cat"}]),
    ]


def score(tmp_path, lines, *options):
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return main(["--completions", str(tmp_path / "answers.jsonl"), "--coco", str(tmp_path / "out"), *options])


def test_recorded_answers_without_a_model(tmp_path, capsys):
    assert score(tmp_path, grounding_lines()) == 0
    assert "map" in capsys.readouterr().out.splitlines()[-2]
    truth = json.loads((tmp_path / "out/ground_truth.json").read_text())
    assert [image["id"] for image in truth["images"]] == [3, 8]
    assert sum(annotation["iscrowd"] for annotation in truth["annotations"]) == 1
    figures = json.loads((tmp_path / "out/metrics.json").read_text())["sets"][""]
    expected = reference(truth, json.loads((tmp_path / "out/results.json").read_text()))
    for name in NAMES:
        assert figures[name] == pytest.approx(expected[name], abs=1e-6)
    assert figures["records"] == 3
    assert not any("ranked" in name for name in figures), "no answer has a score"


def test_answers_with_scores_have_both_figures(tmp_path):
    """In the first answer a box that is on no object comes first and has the lowest score."""
    lines = grounding_lines()
    found = [[60, 0, 99, 9], [0, 0, 40, 38]]
    lines[0]["completion"] = json.dumps([{"bbox_2d": box, "label": "cat"} for box in found])
    for line, scores in zip(lines, ([0.1, 0.8], [0.9, 0.7], [0.6]), strict=True):
        line["scores"] = scores
    assert score(tmp_path, lines) == 0
    figures, truth, results = (
        json.loads((tmp_path / "out" / name).read_text())
        for name in ("metrics.json", "ground_truth.json", "results.json")
    )
    equal, ranked = reference(truth, [{**row, "score": 0.5} for row in results]), reference(truth, results)
    assert ranked["map"] > equal["map"] + 0.01
    for name in ("map", "map_50", "map_75"):
        assert figures["average"][name] == pytest.approx(equal[name], abs=1e-6)
        assert figures["average"][f"{name}_ranked"] == pytest.approx(ranked[name], abs=1e-6)


def test_a_folder_that_cannot_be_created_is_the_first_error(tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert score(tmp_path, [{"completion": "never read"}]) == 2
    assert "out cannot be created (File exists); name another folder" in capsys.readouterr().err


def test_scores_that_belong_to_other_boxes_are_reported(tmp_path, capsys):
    lines = grounding_lines()
    lines[0]["scores"], lines[1]["scores"] = [0.3, 0.4], [0.5, 0.6]
    assert score(tmp_path, lines) == 0
    out = capsys.readouterr().out
    assert "1 answers do not have one score for each predicted box: their boxes get the score 0.99" in out
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [item["score"] for item in results] == [0.99, 0.5, 0.6, 0.99]


def test_plain_lines_ask_for_every_label_of_the_file(tmp_path):
    lines = [
        {key: line[key] for key in line if key not in ("image_id", "image", "categories", "crowd")}
        for line in grounding_lines()
    ]
    lines[0]["completion"] = (
        '[{"bbox_2d": [0, 0, 40, 40], "label": "dog"}, {"bbox_2d": [0, 0, 40, 40], "label": "cow"}]'
    )
    assert score(tmp_path, lines) == 0
    figures = json.loads((tmp_path / "out/metrics.json").read_text())
    assert figures["average"]["other_labels"] == 1
    assert figures["classes"][""]["dog"]["objects"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": "cat"}, '"categories" is no list'),
        ({"areas": [1.0]}, '1 in "areas" but 2 in "boxes_xyxy"'),
        ({"crowd": [[1, 2, 3, 4]]}, '"crowd" is no list of'),
        ({"image_id": "three"}, '"image_id" is no integer'),
        ({"scores": 0.5}, '"scores" is no list'),
        ({"scores": [None]}, '"scores" has something that is no finite number'),
        ({"scores": [float("nan")]}, '"scores" has something that is no finite number'),
        ({"areas": [1.0, {}]}, '"areas" has something that is no finite number from 0'),
        ({"areas": [1.0, -1.0]}, '"areas" has something that is no finite number from 0'),
        ({"categories": ["cat", None]}, '"categories" has something that is no text'),
        ({"crowd": [{"box_xyxy": [1, 2, 3], "label": "cat"}]}, '"crowd"[0] is not four finite numbers'),
        ({"crowd": [{"box_xyxy": [0, 0, 9, 9], "label": "cat", "area": "9"}]}, '"crowd" has something that is no'),
    ],
)
def test_faulty_lines(tmp_path, capsys, changes, message):
    lines = grounding_lines()
    lines[0] |= changes
    assert score(tmp_path, lines) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "answers.jsonl:1: " in error


def test_thousands_of_expressions_are_one_category():
    """pycocotools would look at every expression on every image."""
    count = 1600
    boxes = np.array([0.0, 0.0, 10.0, 10.0])
    found = [np.array([[number, *boxes[:2], 10.0, 10.0 if number % 2 else 4.0, 0.9]]) for number in range(count)]
    true = [np.array([[number, *boxes, 100.0, 0.0]]) for number in range(count)]
    given = CocoInput(predictions=found, targets=true, spellings={number: f"cup {number}" for number in range(count)})
    merged = CocoInput(
        predictions=[np.hstack([np.zeros((1, 1)), rows[:, 1:]]) for rows in found],
        targets=[np.hstack([np.zeros((1, 1)), rows[:, 1:]]) for rows in true],
        spellings={0: "cup"},
    )
    assert {name: float(value) for name, value in evaluate(given).items()} == {
        name: float(value) for name, value in evaluate(merged).items()
    }
    assert list(evaluate_classes(given)[1]) == ["any expression"]


@pytest.mark.parametrize(
    ("values", "mean"), [([-1.0, 0.5], 0.5), ([0.0, 0.5], 0.25), ([0.25, -1.0, 0.75], 0.5), ([-1.0, -1.0], -1.0)]
)
def test_a_set_without_ground_truth_for_a_figure_does_not_count_in_its_average(values, mean):
    assert average_figures([{"map_large": value} for value in values]) == {"map_large": mean}
