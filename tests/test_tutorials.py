"""The notebooks run from the first cell to the last, on fewer steps; every name that they set is one they use."""

import json
import re
import runpy
from pathlib import Path

import pytest
from PIL import Image

from vr1.data import SceneSource
from vr1.policy.loading import EMBEDDED_MODEL

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {path.stem: path for path in (ROOT / "tutorials").glob("*.py")}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a notebook in an empty folder with the configurations beside it, some of its constants replaced."""

    def start(name, **constants):
        source = NOTEBOOKS[name].read_text()
        for constant, value in constants.items():
            source, count = re.subn(rf"(?m)^{constant} = .*$", f"{constant} = {value}", source)
            assert count == 1, constant
        copy = tmp_path / f"{name}.py"
        copy.write_text(source)
        (tmp_path / "configs").symlink_to(ROOT / "configs")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MPLBACKEND", "Agg")
        return runpy.run_path(str(copy))

    return start


def write_photographs(folder, count=6):
    """A folder with a COCO json for each split; the photographs are drawn."""
    (folder / "images").mkdir(parents=True)
    for split in ("train", "val"):
        images, annotations = [], []
        for number, record in enumerate((SceneSource(count, split)[index] for index in range(count)), 1):
            name = f"{split}_{number}.png"
            record.image.save(folder / "images" / name)
            width, height = record.image_size
            images.append({"id": number, "file_name": name, "width": width, "height": height})
            for x1, y1, x2, y2 in record.boxes_xyxy.tolist() or [[1, 1, 9, 9]]:
                box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1, **box})
        document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "star"}]}
        (folder / f"instances_{split}.json").write_text(json.dumps(document))


def test_there_are_four():
    assert set(NOTEBOOKS) == {"your_photographs", "your_reward", "reading_a_run", "qlora_on_one_gpu"}


def test_your_photographs(run, tmp_path):
    write_photographs(tmp_path / "photos")
    names = run("your_photographs", **{"STEPS, WARM_STEPS, BATCH": "2, 1, 2"})
    assert min(Image.open(tmp_path / names["OUT"] / "found.png").size) > 300
    assert all(prediction.record.boxes_xyxy.size for prediction in names["predictions"])
    assert "val/map_50" in names["trainer"].callback_metrics


def test_your_reward(run):
    names = run("your_reward", **{"SCENES, STEPS": "8, 1"})
    totals = dict(zip(names["answers"], names["output"].total.tolist(), strict=True))
    assert max(totals, key=totals.get) == "perfect"
    assert names["output"].terms["right_size"][list(totals).index("elsewhere")] > 0.9, "as the text says"
    assert "reward/right_size" in names["trainer"].callback_metrics


def test_reading_a_run(run):
    names = run("reading_a_run", **{"STEPS, VALIDATE_EVERY, VAL_SCENES": "2, 1, 2"})
    assert [step for step, _ in names["run"].galleries] == [0, 1, 2]


def test_qlora_on_one_gpu(run, tmp_path):
    write_photographs(tmp_path / "photos", count=16)
    settings = {"STEPS, PRECISION, LEARNING_RATE": '2, "32-true", "1e-5"', "MODEL": repr(EMBEDDED_MODEL)}
    names = run("qlora_on_one_gpu", **settings)
    assert (names["OUT"] / "merged" / "model.safetensors").is_file()
    assert "val/map" in [row[0] for row in names["run"].comparison.rows]
