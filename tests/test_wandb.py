"""Weights & Biases by one more configuration file, offline: what was recorded is read back from the run's own file."""

import json
import struct

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from tests.command import CONFIGS, run, small, steps


@pytest.fixture(scope="module")
def recorded(blank_model, tmp_path_factory):
    """The folder of the offline run and its records."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_API_KEY"):
            patch.delenv(name, raising=False)
        words = [*small(blank_model), "--config", CONFIGS / "wandb.yaml", *steps()]
        assert run(folder, "fit", *words) == 0
    wandb.finish()
    [run_folder] = (folder / "runs" / "wandb").glob("offline-run-*")
    [path] = run_folder.glob("*.wandb")
    records = []
    for data in chunks(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        records.append(record)
    return run_folder, records


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
    assert len(pictures) == 2, "before training and after the only step"
    for picture in pictures:
        assert all((folder / "files" / name).is_file() for name in picture["filenames"])
    assert any("curves" in row for row in history(records))


def test_settings_are_recorded_once(recorded):
    updates = [
        update
        for record in recorded[1]
        if record.WhichOneof("record_type") == "config"
        for update in record.config.update
    ]
    keys = [update.key or ".".join(update.nested_key) for update in updates]
    assert len(keys) == len(set(keys))
    assert {"model", "data", "trainer"} <= set(keys)
    model = json.loads(next(update.value_json for update in updates if update.key == "model"))
    assert model["init_args"]["sampling"]["group_size"] == 2


def test_the_other_loggers_stay(recorded):
    version = recorded[0].parents[1] / "demo" / "version_0"
    assert (version / "metrics.csv").is_file()
    assert list(version.glob("events.out.tfevents.*"))
    assert (version / "gallery" / "step_000001.png").is_file()
