"""`python -m vr1 test` with the evaluation configs: on a folder, on a checkpoint with adapters, on several sets."""

import csv
import json
from functools import partial

import lightning.pytorch as pl
import pytest
import torch

from tests.command import CONFIGS, run
from tests.shared_data import SHARED, needs_shared
from vr1.cli import main
from vr1.commands.model_argument import with_model
from vr1.data import SceneDataModule, SceneSource, SceneStyle
from vr1.modules.sft import SFTModule
from vr1.policy import Lora, PolicySource


@pytest.fixture(scope="module")
def checkpoint(tiny_model, tmp_path_factory):
    """A checkpoint of a run that trained adapters far enough to answer otherwise than its base."""
    folder = tmp_path_factory.mktemp("adapters")
    source = PolicySource(path=str(tiny_model), max_pixels=60 * 56 * 56, lora=Lora(rank=2))
    module = SFTModule(policy=source, optimizer=partial(torch.optim.AdamW, lr=3e-2))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_steps=4, limit_val_batches=0, default_root_dir=folder, **quiet)
    trainer.fit(module, SceneDataModule(SceneStyle(), train_scenes=8, val_scenes=1, batch_size=2, num_workers=0))
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Five made scenes in COCO's own layout."""
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    (root / "val2017").mkdir()
    document = {"images": [], "annotations": [], "categories": []}
    ids = {}
    for record in SceneSource(5, "val", style=SceneStyle(absent=0.0)):
        name = f"{record.image_id:012d}.png"
        record.image.save(root / "val2017" / name)
        width, height = record.image_size
        document["images"].append({"id": record.image_id, "file_name": name, "width": width, "height": height})
        for (x1, y1, x2, y2), label in zip(record.boxes_xyxy.tolist(), record.labels, strict=True):
            number = ids.setdefault(label, len(ids) + 1)
            box = [x1, y1, x2 - x1, y2 - y1]
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "image_id": record.image_id,
                    "category_id": number,
                    "bbox": box,
                }
            )
    document["categories"] = [{"id": number, "name": name} for name, number in ids.items()]
    (root / "annotations/instances_val2017.json").write_text(json.dumps(document))
    return root


def evaluate(folder, config, model, *arguments):
    small = ["--model.evaluation.max_new_tokens", 12, "--data.num_workers", 0, "--trainer.accelerator", "cpu"]
    assert run(folder, "test", "--config", CONFIGS / "eval" / config, "--model", model, *small, *arguments) == 0
    return folder / "runs" / config.removesuffix(".yaml")


def answers(folder):
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    return {(row["set"], row["image_id"]): (row["completion"], row["scores"]) for row in rows}


def test_a_checkpoint_with_adapters_and_the_folder_made_of_it_answer_alike(checkpoint, tiny_model, coco, tmp_path):
    assert main(["export", "--ckpt", str(checkpoint), "--out", str(tmp_path / "merged"), "--merge"]) == 0
    found = {}
    for name, model in (("checkpoint", checkpoint), ("merged", tmp_path / "merged"), ("base", tiny_model)):
        (tmp_path / f"by {name}").mkdir()
        folder = evaluate(tmp_path / f"by {name}", "coco.yaml", model, "--data.root", coco)
        figures = json.loads((folder / "metrics.json").read_text())["average"]
        assert figures["records"] == 5
        assert {path.name for path in folder.iterdir()} > {"results.json", "per_class.csv", "per_set.csv", "gallery"}
        found[name] = answers(folder)
    assert {key: text for key, (text, _) in found["checkpoint"].items()} == {
        key: text for key, (text, _) in found["merged"].items()
    }
    assert found["checkpoint"] != found["base"]


@needs_shared
def test_every_set_of_expressions_has_its_accuracy(tiny_model, tmp_path):
    slice_ = SHARED / "refcoco_val_slice"
    lines = (slice_ / "refcoco_val_slice.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for name, part in (("val", lines[:2]), ("testA", lines[2:5])):
        (tmp_path / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
    sets = json.dumps({name: str(tmp_path / f"{name}.jsonl") for name in ("val", "testA")})
    arguments = ["--data.images", slice_ / "images", "--data.test", sets, "--model.policy.max_pixels", 56 * 56 * 4]
    folder = evaluate(tmp_path, "refcoco.yaml", tiny_model, *arguments)
    with (folder / "per_set.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["set"], float(row["records"])) for row in table[:2]] == [("testA", 3), ("val", 2)]
    assert {row["accuracy_50"] for row in table} == {"0.0"}
    asked = json.loads((folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()[0])["instruction"]
    assert asked.startswith("Locate ")
    assert asked.endswith(", output its bbox coordinates using JSON format.")


@pytest.mark.parametrize(
    "arguments",
    [["--model", "SFTModule"], ["--model=vr1.modules.sft.SFTModule"], ["--model", "my/model.yaml"],
     ["--model", '{"class_path": "a/b"}'], ["--model.policy.path", "a/b"], ["--model"]],
)  # fmt: skip
def test_classes_and_settings_are_left_alone(arguments):
    assert with_model("test", arguments) == arguments


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, checkpoint, capsys):
    (tmp_path / "bad.ckpt").write_text("nothing")
    arguments = ["--config", str(CONFIGS / "eval/coco.yaml"), "--model"]
    assert run(tmp_path, "test", *arguments, tmp_path / "bad.ckpt") == 2
    assert "bad.ckpt contains more than tensors and plain values, or is damaged" in capsys.readouterr().err
    assert run(tmp_path, "fit", *arguments, checkpoint) == 2
    assert "to resume a training, give its checkpoint as --ckpt_path" in capsys.readouterr().err
