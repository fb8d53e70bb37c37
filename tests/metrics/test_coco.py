"""CocoMetrics against pycocotools itself, fed with the json of real data sets."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.processes import start_two
from tests.shared_data import SHARED, needs_shared
from vr1.data.annotated import AnnotatedSource
from vr1.data.questions import Questions
from vr1.matching import BoxMatcher, fold_label
from vr1.metrics import CocoMetrics, ReferringAccuracy
from vr1.types import DetectionRecord, Detections, Targets, as_boxes

VERBATIM = "packages/roboflow_coco_export_verbatim/_annotations.coco.json"
FILES = [
    "raccoon/instances_train.json",
    "raccoon/instances_valid.json",
    "mushrooms/instances_train.json",
    "mushrooms/instances_test.json",
    "packages/instances_valid.json",
    VERBATIM,
    "thermal/instances_valid.json",
    "bccd/instances_sample.json",
    "cartucho_map/instances_all.json",
]
NAMES = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large"]
NAMES += ["ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"]


def sound(document: dict) -> dict:
    """The ground truth that an evaluation should use: no empty boxes, ids from 1."""
    document = copy.deepcopy(document)
    document["annotations"] = [a for a in document["annotations"] if a["bbox"][2] > 0 and a["bbox"][3] > 0]
    for number, annotation in enumerate(document["annotations"], start=1):
        annotation["id"] = number
    return document


def reference(document: dict, results: list[dict]) -> dict[str, float]:
    truth = COCO()
    truth.dataset = copy.deepcopy(document)
    truth.dataset.setdefault("info", {})
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats.tolist(), strict=True))


def blank_records(document: dict) -> list[DetectionRecord]:
    names = {category["id"]: category["name"] for category in document["categories"]}
    records = []
    for image in document["images"]:
        own = [a for a in document["annotations"] if a["image_id"] == image["id"]]
        boxes = as_boxes([a["bbox"] for a in own])
        records.append(
            DetectionRecord(
                image=Image.new("RGB", (1, 1)),
                boxes_xyxy=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
                labels=tuple(names[a["category_id"]] for a in own),
                categories=tuple(names.values()),
                image_id=image["id"],
                origin=f"test {image['id']}",
                areas=np.array([a["area"] for a in own], float),
                crowd=np.array([a.get("iscrowd", 0) for a in own], bool),
            )
        )
    return records


def answers(document: dict, results: list[dict], image_ids: list[int]) -> list[Detections]:
    names = {category["id"]: category["name"] for category in document["categories"]}
    found = []
    for image_id in image_ids:
        own = [result for result in results if result["image_id"] == image_id]
        boxes = as_boxes([result["bbox"] for result in own])
        found.append(
            Detections(
                boxes_xyxy=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
                labels=tuple(names[result["category_id"]] for result in own),
                scores=np.array([result["score"] for result in own], float),
                well_formed=True,
                valid=True,
            )
        )
    return found


def perfect(document: dict) -> list[dict]:
    return [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.99} for a in document["annotations"]
    ]


def jittered(document: dict, constant_score: bool, seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    ids = sorted({a["category_id"] for a in document["annotations"]})
    results = []
    for image in document["images"]:
        own = [a for a in document["annotations"] if a["image_id"] == image["id"] and rng.random() > 0.2]
        boxes = [(a["category_id"], a["bbox"]) for a in own for _ in range(1 + (rng.random() < 0.2))]
        boxes += [(int(rng.choice(ids)), [*rng.uniform(0, 100, 2), *rng.uniform(5, 200, 2)]) for _ in range(2)]
        for category, (x, y, w, h) in boxes:
            dx, dy, dw, dh = rng.normal(0, 0.08, 4)
            bbox = [x + w * dx, y + h * dy, w * np.exp(dw), h * np.exp(dh)]
            category = int(rng.choice(ids)) if rng.random() < 0.1 else category
            score = 0.99 if constant_score else float(rng.random())
            bbox = [round(value) for value in bbox] if rng.random() < 0.5 else [float(value) for value in bbox]
            results.append({"image_id": image["id"], "category_id": category, "bbox": bbox, "score": score})
    return results


def ours(records: list[DetectionRecord], detections: list[Detections], order: list[int] | None = None) -> CocoMetrics:
    metrics = CocoMetrics()
    for row in order if order is not None else range(len(records)):
        metrics.update([detections[row]], [records[row]])
    return metrics


def assert_same(metrics: CocoMetrics, expected: dict[str, float]) -> None:
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert {name: found[name] for name in NAMES} == pytest.approx(expected, abs=1e-6)


@needs_shared
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", ["perfect", "random scores", "constant score"])
def test_equals_pycocotools_on_real_data(file, kind):
    document = sound(json.loads((SHARED / file).read_text()))
    results = perfect(document) if kind == "perfect" else jittered(document, kind == "constant score", seed=1)
    records = blank_records(document)
    detections = answers(document, results, [record.image_id for record in records])
    order = np.random.default_rng(0).permutation(len(records)).tolist()
    expected = reference(document, results)
    assert_same(ours(records, detections, order), expected)
    assert expected["map"] == pytest.approx(1) if kind == "perfect" else expected["map"] < 0.9


@needs_shared
def test_recorded_detections():
    document = sound(json.loads((SHARED / "cartucho_map/instances_all.json").read_text()))
    results = json.loads((SHARED / "cartucho_map/detections_all.json").read_text())
    records = blank_records(document)
    metrics = ours(records, answers(document, results, [record.image_id for record in records]))
    assert_same(metrics, reference(document, results))


@needs_shared
@pytest.mark.parametrize("file", [VERBATIM, "bccd/instances_sample.json", "thermal/instances_test.json"])
def test_records_of_a_source_score_as_their_json(file):
    path = SHARED / file
    images = path.parent / "images"
    source = AnnotatedSource(path, images if images.is_dir() else path.parent, bad_records="skip")
    document = json.loads(path.read_text())
    # An image that has lost an object is left out whole.
    faulty = {a["image_id"] for a in document["annotations"] if 0 in a["bbox"][2:]}
    for key, name in (("images", "id"), ("annotations", "image_id")):
        document[key] = [item for item in document[key] if item[name] not in faulty]
    document = sound(document)
    records = list(source)
    for results in (perfect(document), jittered(document, constant_score=True, seed=2)):
        detections = answers(document, results, [record.image_id for record in records])
        assert_same(ours(records, detections), reference(document, results))


@needs_shared
def test_annotation_id_0_costs_nothing_here():
    document = json.loads((SHARED / VERBATIM).read_text())
    results = perfect(document)
    anomalies = json.loads((SHARED / "anomalies.json").read_text())["packages_verbatim_export"]
    assert reference(document, results)["map"] == pytest.approx(anomalies["gt_as_detections_mAP"], abs=1e-4)
    records = blank_records(document)
    metrics = ours(records, answers(document, results, [record.image_id for record in records]))
    assert float(metrics.compute()["map"]) == pytest.approx(1, abs=1e-6)


@needs_shared
@pytest.mark.parametrize("constant_score", [False, True])
def test_grounding_scores_as_detection(constant_score):
    """One question a category gives the same figures, if no question is about an absent category."""
    path = SHARED / "mushrooms/instances_train.json"
    source = AnnotatedSource(path, path.parent / "images", questions=Questions(task="grounding"))
    document = sound(json.loads(path.read_text()))
    questions = [(record.image_id, record.categories[0]) for record in source]
    names = {category["id"]: category["name"] for category in document["categories"]}
    results = jittered(document, constant_score, seed=3)
    results = [r for r in results if (r["image_id"], names[r["category_id"]]) in questions]
    detections = answers(document, results, [image_id for image_id, _ in questions])
    metrics = ours(list(source), detections)
    assert_same(metrics, reference(document, results))


def made(num_images: int = 6, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    annotations = []
    for image_id in range(1, num_images + 1):
        for _ in range(rng.integers(0, 6)):
            box = [float(value) for value in (*rng.integers(0, 50, 2), *rng.integers(4, 150, 2))]
            crowd, scale = int(rng.random() < 0.25), rng.choice([0.0, 0.3, 1.0])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.integers(1, 4)),
                    "bbox": box,
                    "area": box[2] * box[3] * scale,
                    "iscrowd": crowd,
                }
            )
    return {
        "images": [{"id": number, "width": 200, "height": 200} for number in range(1, num_images + 1)],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(("cat", "dog", "cow"), start=1)],
    }


@pytest.mark.parametrize("seed", range(5))
def test_crowds_and_areas_of_their_own(seed):
    document = made(seed=seed)
    results = jittered(document, constant_score=seed % 2 == 0, seed=seed)
    records = blank_records(document)
    metrics = ours(records, answers(document, results, [record.image_id for record in records]))
    assert_same(metrics, reference(document, results))


def test_overlap_of_exactly_a_threshold_counts():
    """Widths of 60 and 55 out of 100 give IoU 0.6 and 0.55, which thresholds rounded to float32 would miss."""
    document = made(1) | {"categories": [{"id": 1, "name": "cat"}]}
    common = {"image_id": 1, "category_id": 1}
    document["annotations"] = [
        common | {"id": row + 1, "bbox": [0, 200 * row, 100, 100], "area": 1e4, "iscrowd": 0} for row in range(10)
    ]
    widths = [50, 55, 60, 65, 70, 75, 80, 85, 90, 95]
    results = [
        common | {"bbox": [0, 200 * row, width, 100], "score": 0.9 - row / 100} for row, width in enumerate(widths)
    ]
    records = blank_records(document)
    assert_same(ours(records, answers(document, results, [1])), reference(document, results))


def test_more_than_a_hundred_boxes():
    document = made(2, seed=3)
    rng = np.random.default_rng(0)
    results = [
        {"image_id": 1, "category_id": 1, "bbox": [*rng.uniform(0, 100, 2), 20, 20], "score": 0.99} for _ in range(150)
    ]
    late = [result | {"score": 0.99} for result in perfect(document)]
    records = blank_records(document)
    for everything in (results + late, late + results):
        metrics = ours(records, answers(document, everything, [1, 2]))
        assert_same(metrics, reference(document, everything))


def one(labels=("cat",), categories=("cat", "dog"), boxes=((0, 0, 40, 40),), image_id=1, origin="a", set_name=""):
    return DetectionRecord(
        image=Image.new("RGB", (1, 1)),
        boxes_xyxy=as_boxes(boxes),
        labels=labels,
        categories=categories,
        image_id=image_id,
        origin=origin,
        areas=np.full(len(labels), 1600.0),
        crowd=np.zeros(len(labels), bool),
        set_name=set_name,
    )


def answer(*labels: str, box=(0, 0, 40, 40)) -> Detections:
    return Detections(
        boxes_xyxy=as_boxes([box] * len(labels)),
        labels=labels,
        scores=np.full(len(labels), 0.99),
        well_formed=True,
        valid=True,
    )


def test_labels_are_compared_without_case_and_full_stop():
    metrics = CocoMetrics()
    metrics.update([answer(" Cat. ")], [one()])
    assert float(metrics.compute()["map"]) == 1


@pytest.mark.parametrize("pair", [("cat", "Cat."), (" cat", "cat"), ("cat", "cats"), ("a  b", "a b"), ("ß", "SS")])
def test_labels_are_compared_as_the_matching_does(pair):
    match = BoxMatcher()(answer(pair[0]), Targets(boxes_xyxy=as_boxes([0, 0, 40, 40]), labels=(pair[1],)))
    assert (match.overlap[0] == 1) == (fold_label(pair[0]) == fold_label(pair[1]))


def test_labels_that_were_not_asked_for_are_dropped_and_counted():
    metrics = CocoMetrics()
    metrics.update([answer("zebra", "cat", "")], [one()])
    result = metrics.compute()
    assert float(result["map"]) == 1
    assert float(result["other_labels"]) == 2
    metrics.update([answer("dog")], [one(image_id=2, origin="b", categories=("cat",))])
    assert float(metrics.compute()["other_labels"]) == 3
    assert set(metrics.per_class()) == {"cat"}


def test_a_category_without_ground_truth_does_not_enter_the_mean():
    metrics = CocoMetrics()
    metrics.update([answer("cat", "dog")], [one()])
    assert float(metrics.compute()["map"]) == 1
    assert metrics.per_class()["dog"] == {"map": -1.0, "map_50": -1.0, "ar_100": -1.0, "objects": 0.0}


def test_per_class_table_has_the_mean_that_the_figures_have():
    document = made(8, seed=4)
    results = jittered(document, constant_score=False, seed=5)
    records = blank_records(document)
    metrics = ours(records, answers(document, results, [record.image_id for record in records]))
    result, table = metrics.compute(), metrics.per_class()
    assert list(table) == ["cat", "cow", "dog"]
    for name in ("map", "map_50", "ar_100"):
        assert np.mean([row[name] for row in table.values()]) == pytest.approx(float(result[name]), abs=1e-6)
    targets = [a for a in document["annotations"] if not a["iscrowd"]]
    assert sum(row["objects"] for row in table.values()) == len(targets)


def test_no_records_and_no_objects():
    metrics = CocoMetrics()
    with pytest.warns(UserWarning, match="before the ``update``"):
        result = metrics.compute()
    assert {name: float(value) for name, value in result.items()} == dict.fromkeys(NAMES, -1.0) | {
        "records": 0.0,
        "other_labels": 0.0,
    }
    metrics.reset()
    metrics.update([answer("cat"), answer()], [one((), boxes=()), one((), boxes=(), image_id=2)])
    assert float(metrics.compute()["map"]) == -1
    assert float(metrics.compute()["records"]) == 2


def test_a_record_seen_twice_counts_once():
    metrics = CocoMetrics()
    metrics.update([answer("cat"), answer()], [one(), one()])
    result = metrics.compute()
    assert (float(result["map"]), float(result["records"])) == (1, 1)


def test_the_same_image_id_in_two_files_counts_twice():
    metrics = CocoMetrics()
    metrics.update([answer("cat"), answer()], [one(origin="a"), one(origin="b")])
    assert float(metrics.compute()["ar_100"]) == 0.5


def test_sets_are_measured_each_on_its_own():
    metrics = CocoMetrics()
    cat, dog = answer("cat"), answer("dog")
    metrics.update([cat], [one(set_name="b", categories=("cat",))])
    metrics.update([dog, cat], [one(set_name="a/large"), one(set_name="a/large", image_id=2)])
    result = {name: float(value) for name, value in metrics.compute().items()}
    assert (result["b/map"], result["b/records"], result["records"], result["a/large/records"]) == (1, 1, 3, 2)
    alone = CocoMetrics()
    alone.update([dog, cat], [one(), one(image_id=2)])
    assert result["a/large/map"] == float(alone.compute()["map"]) < 1
    assert result["map"] == (result["a/large/map"] + 1) / 2
    assert set(metrics.per_class()) == {"a/large/cat", "a/large/dog", "b/cat"}
    # One category and one true box are the question in one of the sets only.
    assert (result["b/accuracy_50"], "accuracy_50" in result, "a/large/accuracy_50" in result) == (1, False, False)


def test_accuracy_of_questions_for_one_box():
    metrics, plain = CocoMetrics(), ReferringAccuracy()
    records = [one(image_id=number, categories=("cat",)) for number in range(3)]
    found = [answer("cat"), answer(), answer("anything")]
    metrics.update(found, records)
    plain.update(found, records)
    assert float(metrics.compute()["accuracy_50"]) == pytest.approx(float(plain.compute())) == pytest.approx(2 / 3)


def test_as_many_answers_as_records():
    with pytest.raises(ValueError, match="1 answers to 2 records"):
        CocoMetrics().update([answer("cat")], [one(), one()])


def test_reset_forgets_and_forward_keeps():
    metrics = CocoMetrics()
    assert float(metrics([answer("cat")], [one()])["map"]) == 1
    assert float(metrics([answer()], [one(image_id=2)])["map"]) == 0
    assert float(metrics.compute()["ar_100"]) == 0.5
    metrics.reset()
    metrics.update([answer("dog")], [one(("dog",), image_id=3)])
    assert float(metrics.compute()["map"]) == 1
    assert set(metrics.per_class()) == {"dog"}


def shares() -> tuple[dict, list[dict], list[DetectionRecord], list[Detections]]:
    document = made(9, seed=6)
    results = jittered(document, constant_score=True, seed=7)
    records = blank_records(document)
    return document, results, records, answers(document, results, [record.image_id for record in records])


def test_merged_states_equal_one_process():
    document, results, records, detections = shares()
    first, second = ours(records, detections, [8, 0, 2]), ours(records, detections, [1, 3, 4, 5, 6, 7, 8])
    first.merge_state(second)
    assert_same(first, reference(document, results))
    assert float(first.compute()["records"]) == 9


def _process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    _, _, records, detections = shares()
    outcomes = []
    for orders in ([[7, 1, 3, 5], [0, 2, 4, 6, 8, 7]], [[], list(range(9))]):  # a record twice; a process with none
        metrics = ours(records, detections, orders[rank])
        figures = {name: float(value) for name, value in metrics.compute().items()}
        outcomes.append((figures, metrics.per_class()))
    torch.save(outcomes, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    document, results, records, detections = shares()
    start_two(_process, str(tmp_path))
    alone = ours(records, detections)
    expected = {name: float(value) for name, value in alone.compute().items()}
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == [(expected, alone.per_class())] * 2
    assert_same(alone, reference(document, results))
