"""Weights & Biases by one more configuration file, offline: what was recorded is read back from the run's own file."""

import json
import struct
import time
from pathlib import Path

import pytest
import torch
import wandb
import yaml
from wandb.proto import wandb_internal_pb2

from tests.command import CONFIGS, run, small, steps
from vr1.checkpoints.shards import write_shards
from vr1.commands.resume import WANDB_KEY, stored_wandb_run_id


@pytest.fixture(scope="module")
def recorded(tiny_model, tmp_path_factory):
    """The folder of the offline run and its records."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_API_KEY"):
            patch.delenv(name, raising=False)
        # Where the pictures of tables wait until they are sent.
        patch.setenv("WANDB_DATA_DIR", str(folder / "waiting"))
        arguments = [*small(tiny_model), "--config", CONFIGS / "wandb.yaml", *steps(2)]
        arguments += ["--trainer.callbacks.every_n_steps", 1]
        assert run(folder, "fit", *arguments) == 0
    wandb.finish()
    [run_folder] = (folder / "runs" / "wandb").glob("offline-run-*")
    [path] = run_folder.glob("*.wandb")
    wait_until_written(path)
    records = []
    for data in chunks(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        records.append(record)
    return run_folder, records


def wait_until_written(path):
    """W&B writes in a process of its own, which may still be at it: until nothing has been added for two seconds."""
    size, since, deadline = -1, time.monotonic(), time.monotonic() + 60
    while time.monotonic() < min(since + 2, deadline):
        if (now := path.stat().st_size) != size:
            size, since = now, time.monotonic()
        time.sleep(0.1)


def chunks(data):
    """The records of a log in LevelDB's format: 32 KiB blocks of fragments, after a header of 7 bytes."""
    position, whole = 7, b""
    while position < len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def history(records):
    """One mapping a step, in which a picture is a mapping of its own."""
    for record in records:
        if record.WhichOneof("record_type") != "history":
            continue
        row = {}
        for item in record.history.item:
            first, *rest = item.nested_key or [item.key]
            place = row.setdefault(first, {}) if rest else row
            place[rest[0] if rest else first] = json.loads(item.value_json)
        yield row


def test_metrics_are_recorded(recorded):
    names = {name for row in history(recorded[1]) for name in row}
    assert {"reward/total", "grpo/loss", "val/map", "perf/tokens_per_second"} <= names


def test_galleries_and_curves_are_pictures(recorded):
    folder, records = recorded
    pictures = [row["gallery/val"] for row in history(records) if "gallery/val" in row]
    assert len(pictures) == 3, "before training and after each step"
    for picture in pictures:
        assert all((folder / "files" / name).is_file() for name in picture["filenames"])
    assert any("curves" in row for row in history(records))


def test_settings_are_recorded_once_and_flat(recorded):
    updates = [
        update
        for record in recorded[1]
        if record.WhichOneof("record_type") == "config"
        for update in record.config.update
    ]
    keys = [update.key or "/".join(update.nested_key) for update in updates]
    assert len(keys) == len(set(keys))
    settings = {key: json.loads(update.value_json) for key, update in zip(keys, updates, strict=True)}
    assert settings["model.sampling.group_size"] == 2
    written = yaml.safe_load((CONFIGS / "demo.yaml").read_text())["model"]["init_args"]["optimizer"]["init_args"]
    assert settings["model.optimizer.lr"] == written["lr"]
    assert not any(isinstance(value, dict) for key, value in settings.items() if not key.startswith("_"))


def test_steps_are_optimizer_steps(recorded):
    rows = list(history(recorded[1]))
    steps = {name: [row["trainer/global_step"] for row in rows if name in row] for name in ("reward/total", "val/map")}
    assert steps == {"reward/total": [1, 2], "val/map": [0, 1, 2]}


def test_completions_are_tables(recorded):
    written = {}
    for record in recorded[1]:
        if record.WhichOneof("record_type") == "artifact":
            for item in record.artifact.manifest.contents:
                if item.path.endswith("table.json"):
                    written[item.path] = json.loads(Path(item.local_path).read_text())
    assert set(written) == {"completions/train.table.json", "completions/val.table.json"}
    terms = ["reward", "dual_format", "recall", "precision", "advantage"]
    for table in written.values():
        assert table["columns"] == ["image", "prompt", "answer", *terms]
        assert any("ground_truth" in row[0]["boxes"] for row in table["data"])
    assert len(written["completions/train.table.json"]["data"]) == 4, "two prompts of two answers"


def test_a_resumed_training_continues_the_run(recorded, tiny_model):
    folder = recorded[0].parents[2]
    [checkpoint] = (folder / "runs").rglob("*.ckpt")
    arguments = [*small(tiny_model), "--config", CONFIGS / "wandb.yaml", *steps(3), "--ckpt_path", checkpoint]
    assert run(folder, "fit", *arguments) == 0
    wandb.finish()
    runs = {path.name.rsplit("-", 1)[-1] for path in (folder / "runs" / "wandb").glob("offline-run-*")}
    assert len(runs) == 1, "one id, in two recordings"


def test_a_checkpoint_in_shards_names_its_run_too(tmp_path):
    write_shards({"state_dict": {"weight": torch.ones(2)}, WANDB_KEY: "abc123"}, tmp_path / "last.ckpt")
    assert stored_wandb_run_id(str(tmp_path / "last.ckpt")) == "abc123"
    write_shards({"state_dict": {"weight": torch.ones(2)}}, tmp_path / "other.ckpt")
    assert stored_wandb_run_id(str(tmp_path / "other.ckpt")) is None


def test_the_other_loggers_stay(recorded):
    version = recorded[0].parents[1] / "demo" / "version_0"
    assert (version / "metrics.csv").is_file()
    assert list(version.glob("events.out.tfevents.*"))
    assert (version / "gallery" / "step_000001.png").is_file()
