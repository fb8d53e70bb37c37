"""Before and after: which validations are compared, and what is printed and written."""

import csv
import json
import re
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from callbacks import BeforeAfter, Evaluation, RuleRefinement
from callbacks.schedule import paper_stages
from tests.callbacks.tiny import TinyDetector
from tests.trainers import trainer
from vr1.data import SceneDataModule
from vr1.modules.sft import SFTModule
from vr1.rollout import Sampling
from vr1.runs.report import write_report
from vr1.runs.tables import Comparison, Measurement

FIT = {"max_steps": 4, "num_sanity_val_steps": -1, "limit_val_batches": 1.0, "val_check_interval": 2}


def written(folder):
    return json.loads((folder / "before_after.json").read_text())


def test_table_of_a_training(tmp_path, capsys):
    trainer(tmp_path, [BeforeAfter()], **FIT).fit(TinyDetector())
    result = written(tmp_path)
    assert result["before"] == {"step": 0, "metrics": pytest.approx({"val/map": 0.1, "val/valid_rate": 0.5})}
    assert result["after"] == {"step": 4, "metrics": pytest.approx({"val/map": 0.14, "val/valid_rate": 0.5})}
    assert result["best"] is None
    assert result["notes"] == []
    assert "| val/map | 0.100 | 0.140 | +0.040 |" in (tmp_path / "before_after.md").read_text()
    assert "+0.040" in capsys.readouterr().out


def test_rewards_of_different_stages_have_a_note(tmp_path):
    trainer(tmp_path, [RuleRefinement(), BeforeAfter()], **FIT).fit(TinyDetector())
    [note] = written(tmp_path)["notes"]
    assert "before is by the criterion of stage beginner, the reward after by that of stage advanced" in note
    trainer(tmp_path, [RuleRefinement(paper_stages()[:1]), BeforeAfter()], **FIT).fit(TinyDetector())
    assert written(tmp_path)["notes"] == []


def test_before_is_logged_as_step_0(tmp_path):
    logger = CSVLogger(tmp_path, name="run")
    trainer(tmp_path, [BeforeAfter()], logger=logger, **FIT).fit(TinyDetector())
    with (tmp_path / "run" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/map"]]
    # Lightning counts a validation as belonging to the step before it, hence 1 and 3.
    assert [int(row["step"]) for row in rows] == [0, 1, 3]
    assert float(rows[0]["val/map"]) == pytest.approx(0.1)
    assert (tmp_path / "run" / "version_0" / "before_after.md").exists()


def test_best_by_what_the_checkpoint_monitors(tmp_path):
    saving = ModelCheckpoint(tmp_path, monitor="val/map", mode="min")
    trainer(tmp_path, [BeforeAfter(), saving], enable_checkpointing=True, **FIT).fit(TinyDetector())
    assert written(tmp_path)["best"]["step"] == 2
    assert "best by val/map (step 2)" in (tmp_path / "before_after.md").read_text()


def test_resume_restores_before(tmp_path):
    saving = ModelCheckpoint(tmp_path, filename="half", every_n_train_steps=2, save_top_k=-1)
    trainer(tmp_path, [BeforeAfter(), saving], enable_checkpointing=True, **(FIT | {"max_steps": 2})).fit(
        TinyDetector()
    )
    folder = tmp_path / "resumed"
    trainer(folder, [BeforeAfter()], **FIT).fit(TinyDetector(), ckpt_path=tmp_path / "half.ckpt")
    assert written(folder)["before"]["metrics"]["val/map"] == pytest.approx(0.1)
    assert written(folder)["after"]["step"] == 4


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ({"num_sanity_val_steps": 0}, "untrained model was not evaluated"),
        ({"num_sanity_val_steps": 1}, r"covered \[1\] of \[3\] validation batches"),
        ({"max_steps": 5}, "last validation was at step 4 of 5"),
        ({"max_steps": 1}, "ended before the first validation"),
    ],
)
def test_notes(tmp_path, settings, note, capsys):
    trainer(tmp_path, [BeforeAfter()], **(FIT | settings)).fit(TinyDetector())
    (text,) = written(tmp_path)["notes"]
    assert re.search(note, text)
    assert text in (tmp_path / "before_after.md").read_text()


def test_classes_at_the_first_the_last_and_the_best_validation(source, tmp_path):
    data = SceneDataModule(train_scenes=4, val_scenes=6, batch_size=2, num_workers=0)
    settings = {"policy": source, "evaluation": Sampling(group_size=1, temperature=0.0, max_new_tokens=32)}
    module = SFTModule(**settings, optimizer=partial(torch.optim.AdamW, lr=1e-3))
    saving = ModelCheckpoint(tmp_path, monitor="val/map", mode="min")
    steps = {"max_steps": 2, "val_check_interval": 1, "enable_checkpointing": True}
    trainer(tmp_path, [BeforeAfter(), saving], **FIT | steps).fit(module, data)
    result = written(tmp_path)
    steps = {moment: result["classes"][moment]["step"] for moment in ("first", "last", "best")}
    assert steps == {"first": 0, "last": 2, "best": result["best"]["step"]}
    # An evaluation of the untrained model writes the same figures, from its recorded answers.
    untrained = SFTModule(**settings, optimizer=partial(torch.optim.AdamW, lr=1e-3))
    trainer(tmp_path, [Evaluation(tmp_path / "files")], limit_val_batches=1.0).validate(untrained, data)
    classes = json.loads((tmp_path / "files" / "metrics.json").read_text())["classes"][""]
    assert result["classes"]["first"]["figures"] == {name: pytest.approx(row) for name, row in classes.items()}
    assert sum(row["objects"] for row in classes.values()) > 0
    for moment, measured in (("first", "before"), ("last", "after")):
        maps = [row["map"] for row in result["classes"][moment]["figures"].values() if row["map"] >= 0]
        assert sum(maps) / len(maps) == pytest.approx(result[measured]["metrics"]["val/map"], abs=1e-6)
    assert "| class | boxes | AP before | AP after (step 2) | change |" in (tmp_path / "before_after.md").read_text()
    assert '<section id="classes">' in write_report(tmp_path).read_text()


def test_without_any_validation_nothing_is_written(tmp_path):
    trainer(tmp_path, [BeforeAfter()], max_steps=1).fit(TinyDetector())
    assert not list(tmp_path.iterdir())


def test_metrics_missing_on_one_side():
    table = Comparison(Measurement(0, {"val/old": 1.0}), Measurement(9, {"val/new": 2.0}), notes=["note"])
    assert table.rows == [["val/new", "-", "2.000", "-"], ["val/old", "1.000", "-", "-"]]
    assert table.markdown().endswith("\n\nnote\n")


def test_plain_table_without_rich(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    table = Comparison(Measurement(0, {"val/map": 0.1}), Measurement(9, {"val/map": 0.2}))
    table.show()
    assert capsys.readouterr().out.strip() == table.markdown().strip()


def test_bad_settings():
    with pytest.raises(ValueError, match="prefix is empty"):
        BeforeAfter(prefix="")
