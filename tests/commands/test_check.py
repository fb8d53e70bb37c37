"""`python -m vr1 check` on small valid and faulty folders with known content, and on the real data sets."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.command import CONFIGS, run
from tests.shared_data import SHARED, needs_shared
from vr1.commands.check.pictures import as_seen
from vr1.commands.check.summary import bins
from vr1.data import SceneSource, SceneStyle
from vr1.families import CustomFamily, ItemGrammar, Qwen25VL, Wording
from vr1.prompts import PromptEncoder


@pytest.fixture
def picture(tmp_path):
    """Writes an image below the test's folder."""

    def write(name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(list(path.parent.iterdir()))).integers(0, 255, (80, 100, 3), np.uint8)
        Image.fromarray(pixels).save(path)

    return write


@pytest.fixture
def folder(tmp_path):
    """Scenes as one COCO json for each of two splits, before it is written."""
    splits = {}
    for split, count in (("train", 6), ("valid", 3)):
        (tmp_path / "images").mkdir(exist_ok=True)
        document = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "shape"}]}
        for record in SceneSource(count, "val" if split == "valid" else split, style=SceneStyle(absent=0.0)):
            name = f"{split}_{record.image_id}.png"
            record.image.save(tmp_path / "images" / name)
            width, height = record.image_size
            document["images"].append({"id": record.image_id, "file_name": name, "width": width, "height": height})
            for x1, y1, x2, y2 in record.boxes_xyxy.tolist():
                item = {"id": len(document["annotations"]) + 1, "image_id": record.image_id, "category_id": 1}
                document["annotations"].append(item | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
        splits[split] = document
    return tmp_path, splits


def check(folder, model, *arguments):
    root, splits = folder
    for split, document in splits.items():
        (root / f"instances_{split}.json").write_text(json.dumps(document))
    arguments = ["--data.root", root, "--model", model, "--data.num_workers", 0, "--out", root / "out", *arguments]
    return run(root, "check", "--config", CONFIGS / "raccoon.yaml", *arguments)


def test_a_valid_folder(folder, tiny_model, capsys):
    assert check(folder, tiny_model) == 0
    root, splits = folder
    text = (root / "out" / "check.txt").read_text()
    assert text.splitlines()[-1] == "no anomalies"
    assert text.rpartition("\n\n")[0] in capsys.readouterr().out
    for name, split in (("train", "train"), ("val", "valid")):
        images, objects = len(splits[split]["images"]), len(splits[split]["annotations"])
        assert f"{name}: {images} records, {objects} objects (0 records without one), 0 crowd regions" in text
    assert text.count("anomalies: none") == text.count("categories: shape")
    assert "remarks" not in text
    for picture in ("histograms.png", "records_train.png", "records_val.png"):
        assert min(Image.open(root / "out" / picture).size) > 100


@pytest.mark.parametrize("bad_records", ["skip", "error"])
def test_every_anomaly_is_reported_once_with_its_file(folder, tiny_model, capsys, bad_records):
    root, splits = folder
    boxes = splits["train"]["annotations"]
    for box in boxes[:7]:
        box["bbox"] = [*box["bbox"][:2], 0, 0]
    (root / "images" / "train_6.png").write_bytes((root / "images" / "train_6.png").read_bytes()[:300])
    assert check(folder, tiny_model, "--data.bad_records", bad_records, "--model.max_prompt_tokens", 20) == 1
    text, out = (root / "out" / "check.txt").read_text(), capsys.readouterr().out
    for shown in (text, out):
        assert shown.count("box of zero size: 7") == 1
        assert sum("instances_train.json: annotation" in line for line in shown.splitlines()) == 7
        assert sum("train_6.png: the image is damaged or cut short" in line for line in shown.splitlines()) == 1
        assert "prompt longer than model.max_prompt_tokens" in shown
        # One sentence at the end says what there is to fix, and how.
        assert re.search(r"7 faulty boxes and \d+ other faults in train; .*--data\.bad_records skip$", shown.strip())
    assert "val: 3 records" in out
    assert "cannot be opened" not in out


def test_a_faulty_file_of_all_splits_is_reported_once(tmp_path, tiny_model, capsys, picture):
    """One json, divided by image: each fault belongs to one split, that of its image."""
    names = [f"{number}.png" for number in range(40)]
    for name in names:
        picture(f"images/{name}")
    document = {
        "images": [{"id": n, "file_name": name, "width": 100, "height": 80} for n, name in enumerate(names)],
        "categories": [{"id": 1, "name": "shape"}],
        "annotations": [{"id": n + 1, "image_id": n, "category_id": 1, "bbox": [1, 2, 30, 40]} for n in range(40)],
    }
    faulty = [{"id": 100 + n, "image_id": n, "category_id": 1, "bbox": [5, 5, 0, 0]} for n in range(20)]
    # Images with a faulty annotation are left out, one of nothing else and a missing one too: each is of one split.
    document["annotations"] = document["annotations"][2:] + faulty
    (tmp_path / "images" / "30.png").unlink()
    assert check((tmp_path, {"everything": document}), tiny_model) == 1
    text = (tmp_path / "out" / "check.txt").read_text()
    assert text.count("bbox [5, 5, 0, 0]") == 20
    assert len(set(re.findall(r"annotation (\d+) on", text))) == 20
    assert text.count("30.png (id 30)") == 1
    assert sum(map(int, re.findall(r"(\d+) faulty box", text))) == 20
    assert "cannot be opened" not in capsys.readouterr().out


def test_a_missing_split_is_no_fault_and_a_damaged_one_is(folder, tiny_model, capsys):
    root, splits = folder
    del splits["valid"]
    assert check(folder, tiny_model) == 0
    assert "val is not checked: " in capsys.readouterr().out
    (root / "instances_valid.json").write_text("{")
    assert check(folder, tiny_model) == 1
    out = capsys.readouterr().out
    assert "instances_valid.json: not JSON" in out
    assert out.splitlines()[-1].startswith("val cannot be opened: fix")


def test_unusual_records_are_remarks(folder, tiny_model, capsys):
    root, splits = folder
    train, valid = splits["train"], splits["valid"]
    first, second, third = (train["images"][row] for row in range(3))
    Image.new("L", (first["width"], first["height"]), 90).save(root / "images" / first["file_name"])
    train["annotations"] = [item for item in train["annotations"] if item["image_id"] != second["id"]]
    box = next(item for item in train["annotations"] if item["image_id"] == third["id"])
    box["bbox"] = [0, 0, third["width"], third["height"]]
    # An image of the training set, and one with other boxes, in the validation set.
    for source, target in ((train["images"][3], valid["images"][0]), (train["images"][4], valid["images"][1])):
        (root / "images" / source["file_name"]).rename(root / "images" / target["file_name"])
        (root / "images" / source["file_name"]).symlink_to(root / "images" / target["file_name"])
        target |= {"width": source["width"], "height": source["height"]}
        boxes = [item["bbox"] for item in train["annotations"] if item["image_id"] == source["id"]]
        valid["annotations"] = [item for item in valid["annotations"] if item["image_id"] != target["id"]]
        if target is valid["images"][1]:
            boxes = [[1, 2, 30, 40]]
        for item in boxes:
            number = 1 + max(other["id"] for other in valid["annotations"])
            valid["annotations"].append({"id": number, "image_id": target["id"], "category_id": 1, "bbox": item})
    assert check(folder, tiny_model) == 0
    text = (root / "out" / "check.txt").read_text()
    for kind, image in (
        ("greyscale image", first),
        ("record without an object", second),
        ("box that covers 98 % of its image or more", third),
    ):
        assert re.search(rf"{kind}: 1\n    .*{image['file_name']}", text), kind
    for number, boxes in ((0, "the same boxes"), (1, "different boxes")):
        pattern = (
            rf"same image and question twice in train and val, with {boxes}: 1\n    .*{3 + number + 1}\.png = .*png"
        )
        assert re.search(pattern, text)
    assert "remarks on all splits: 2" in capsys.readouterr().out


def test_answers_that_no_completion_reaches_are_remarks(folder, tiny_model, source, capsys):
    root, splits = folder
    tokenizer = source.processor().tokenizer
    arguments = ["--model.sampling.max_new_tokens", 40, "--model.evaluation.max_new_tokens", 60]
    assert check(folder, tiny_model, *arguments) == 0
    text = (root / "out" / "check.txt").read_text()
    for name, split, limit in (("train", "train", 40), ("val", "valid", 60)):
        part = next(part for part in text.split("\n\n") if part.startswith(f"{name}:"))
        lengths = {}
        for image in splits[split]["images"]:
            boxes = [item["bbox"] for item in splits[split]["annotations"] if item["image_id"] == image["id"]]
            # The images are as large as the model's input.
            corners = [", ".join(str(round(v)) for v in (x, y, x + w, y + h)) for x, y, w, h in boxes]
            items = [f'\t{{"bbox_2d": [{corner}], "label": "shape"}}' for corner in corners]
            answer = "```json\n[\n" + ",\n".join(items) + "\n]\n```"
            lengths[image["file_name"]] = len(tokenizer(answer, add_special_tokens=False)["input_ids"]) + 1
        longest = max(lengths.values())
        mean = sum(lengths.values()) / len(lengths)
        assert f"true answers: {mean:.0f} tokens on average, the longest {longest} of {limit} (" in part
        long = {file: length for file, length in lengths.items() if length > limit}
        found = re.findall(rf"    .*?([^/ ]+\.png).*: (\d+) of {limit} tokens", part)
        assert {file: int(length) for file, length in found} == long
        line = f"true answer longer than max_new_tokens, which no completion reaches: {len(long)}"
        assert (line in part) == bool(long)
    assert "true answer longer" in text


def test_training_that_samples_nothing_has_no_longest_answer(folder, tiny_model):
    root, _ = folder
    sft = ["--model", "vr1.SFTModule", "--model.policy.path", tiny_model, "--model.evaluation.max_new_tokens", 5]
    for split, document in folder[1].items():
        (root / f"instances_{split}.json").write_text(json.dumps(document))
    data = ["--data.root", root, "--data.num_workers", 0, "--out", root / "out"]
    assert run(root, "check", "--config", CONFIGS / "raccoon.yaml", *sft, *data) == 0
    train, val = (root / "out" / "check.txt").read_text().split("\n\n")[:2]
    assert "true answers" in train
    assert "true answer longer" not in train
    assert " of 5 (" in val


@needs_shared
def test_what_is_known_of_the_real_data_is_reported(tmp_path, tiny_model, capsys):
    anomalies = json.loads((SHARED / "anomalies.json").read_text())

    def lines_of(name, *arguments):
        settings = ["--config", CONFIGS / "raccoon.yaml", "--data.root", SHARED / name, "--model", tiny_model]
        status = run(tmp_path, "check", *settings, "--out", tmp_path / name, "--data.num_workers", 0, *arguments)
        return status, (tmp_path / name / "check.txt").read_text().splitlines()

    def below(lines, kind):
        """The records that are listed under a kind, in all splits."""
        starts = [row for row, line in enumerate(lines) if line.startswith(f"  {kind}: ")]
        counts = [int(lines[row].rpartition(" ")[2]) for row in starts]
        return [line for row, count in zip(starts, counts, strict=True) for line in lines[row + 1 : row + 1 + count]]

    def files(lines):
        return sorted(line.partition("]: ")[2].partition(": box")[0] for line in lines)

    status, lines = lines_of("raccoon")
    assert status == 0
    assert files(below(lines, "greyscale image")) == sorted(anomalies["raccoon"]["grayscale_jpeg"])
    full = below(lines, "box that covers 98 % of its image or more")
    assert files(full) == anomalies["raccoon"]["box_covers_whole_image"]

    status, lines = lines_of("bccd")
    assert status == 1
    assert lines[-1].startswith("2 faulty boxes in train: ")
    boxes = below(lines, "box of zero size")
    assert all(name in line for (name, _), line in zip(anomalies["bccd"]["zero_area"], boxes, strict=True))

    status, lines = lines_of("thermal")
    empty = anomalies["thermal"]["images_without_object"]
    assert files(below(lines, "record without an object")) == sorted(name for part in empty.values() for name in part)

    lines = lines_of("packages/roboflow_coco_export_verbatim")[1]
    assert any("annotation ids start at 0" in line for line in lines)
    assert any("which no question names: packages" in line for line in lines)

    status, lines = lines_of("cartucho_map")
    assert (status, len(below(lines, "image file missing"))) == (1, 56)
    here = [name for name in anomalies["cartucho_map"]["y2_481_in_480_high_image"] if is_there(name)]
    rounded = below(lines, "image with a box up to 1 px outside it, clipped")
    assert [line.rpartition("/")[2].split(": ")[1] for line in rounded] == [f"{name}.jpg" for name in here]


def is_there(name):
    return (SHARED / "cartucho_map/images" / f"{name}.jpg").is_file()


def test_an_image_that_the_model_cannot_take(folder, tiny_model):
    root, splits = folder
    image = splits["train"]["images"][0]
    Image.new("RGB", (1200, 4)).save(root / "images" / image["file_name"])
    image["width"], image["height"] = 1200, 4
    boxes = splits["train"]["annotations"]
    splits["train"]["annotations"] = [item for item in boxes if item["image_id"] != image["id"]]
    assert check(folder, tiny_model) == 1
    text = (root / "out" / "check.txt").read_text()
    assert "record of which the model's processor makes no prompt: 1" in text
    assert "refuses the image of 1200 x 4 pixels" in text


def test_nothing_that_can_be_read(tmp_path, tiny_model, capsys):
    arguments = ["--config", CONFIGS / "raccoon.yaml", "--data.root", tmp_path, "--model", tiny_model]
    assert run(tmp_path, "check", *arguments) == 2
    assert "vr1 check: error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "family",
    [Qwen25VL(), CustomFamily(frame="image", wording=Wording(one="Find {categories}."), grammar=ItemGrammar())],
    ids=["input", "image"],
)
def test_records_are_shown_at_the_models_size(source, records, family):
    processor = source.processor()
    processor.image_processor.size = type(processor.image_processor.size)(shortest_edge=3136, longest_edge=28 * 28 * 9)
    encoder = PromptEncoder(processor, family, max_prompt_tokens=1024)
    for record in records:
        prediction = as_seen(record, encoder)
        assert prediction.record.image.size != record.image.size
        scale = np.tile(np.array(prediction.record.image.size) / record.image.size, 2)
        np.testing.assert_allclose(prediction.record.boxes_xyxy, record.boxes_xyxy * scale)
        # Written as integers of the frame, so within half a unit of it.
        np.testing.assert_allclose(prediction.detections.boxes_xyxy, prediction.record.boxes_xyxy, atol=0.51)


def test_bins_hold_every_value():
    values = [0, 0, 3, 3.5, 31.9, 40, 1e6]
    assert dict(bins(values, (0, 8, 32, 64))) == {"0-7": 4, "8-31": 1, "32-63": 1, "64+": 1}
    assert bins([], (0, 1)) == [("0", 0)]


OWN_DATA = """
from dataclasses import replace

import numpy as np
from torch.utils.data import Dataset

from vr1.data import RecordDataModule, SceneSource, SceneStyle
from vr1.data.datamodule import MissingSplitError

BOXES = {1: (60, 10, 20, 40), 2: (10, 10, 10, 40), 3: (10, float("nan"), 20, 40), 4: (10, 10, 900, 40)}


class Faulty(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        record = SceneSource(6, "val", style=SceneStyle(absent=0.0))[index]
        boxes = record.boxes_xyxy.copy()
        boxes[0] = BOXES.get(index, boxes[0])
        labels = record.labels[1:] if index == 5 else record.labels
        return replace(record, boxes_xyxy=boxes, labels=labels, origin=f"row {index}")


class Module(RecordDataModule):
    def read(self, split):
        if split != "train":
            raise MissingSplitError(f"there is no {split}")
        return Faulty()
"""


def test_boxes_of_a_data_set_of_ones_own(tmp_path, tiny_model, monkeypatch):
    """What the formats refuse when they are opened, a `Dataset` of a user's own may return."""
    (tmp_path / "own_faulty_data.py").write_text(OWN_DATA)
    (tmp_path / "data.yaml").write_text("data: {class_path: own_faulty_data.Module, init_args: {num_workers: 0}}")
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["--config", CONFIGS / "demo.yaml", "--config", "data.yaml", "--model", tiny_model, "--out", "out"]
    assert run(tmp_path, "check", *arguments) == 1
    text = (tmp_path / "out" / "check.txt").read_text()
    for row, named in (
        (1, "box 0 is 60, 10, 20, 40;"),
        (2, "box 0 is 10, 10, 10, 40;"),
        (3, "box 0 is 10, nan, 20, 40;"),
    ):
        assert f"row {row}: {named}" in text
    assert re.search(r"row 5: (\d+) boxes and \d+ labels; give one for each box", text)
    assert "row 4: box 10, 10, 900, 40 on" in text
    assert "box that reaches beyond its image" in text
    assert "row 0: " not in text
