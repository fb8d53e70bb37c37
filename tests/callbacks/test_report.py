"""The report that a training writes, also when it is stopped or fails."""

import json
import re
from functools import partial

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from callbacks import BeforeAfter, Curves, Gallery, Report, RuleRefinement
from callbacks.report import summarise
from tests.callbacks.tiny import TinyDetector
from tests.trainers import trainer
from vr1.data import SceneDataModule, SceneStyle
from vr1.drawing.boxes import example_prediction
from vr1.modules.sft import SFTModule

FIT = {"max_steps": 4, "num_sanity_val_steps": -1, "limit_val_batches": 1.0, "val_check_interval": 2}


def test_a_training_writes_a_page(tmp_path):
    # First in the list, and still the page has what the others write at the end.
    callbacks = [Report(), RuleRefinement(), Gallery(2, 64), Curves(), BeforeAfter()]
    settings = {**FIT, "logger": CSVLogger(tmp_path, name=""), "log_every_n_steps": 1}
    trainer(tmp_path, callbacks, **settings).fit(TinyDetector())
    folder = tmp_path / "version_0"
    page = (folder / "report.html").read_text()
    assert "after (step 4)" in page
    assert page.count('"src":"data:image/jpeg') == 3, "galleries"
    # Two images in the gallery, at three validations each.
    assert re.findall(r'alt="(image .*?)"', page) == [
        f"image {number} {moment}" for number in (1, 2) for moment in ("before training", "step 2", "step 4")
    ]
    assert '"switches":[[2,"advanced"]]' in page
    assert '"name":"rule/xi0"' in page, "what only the log has"
    facts = json.loads((folder / "run.json").read_text())
    assert facts["versions"]["lightning"]
    assert "ended" not in facts


def test_without_a_logger(tmp_path):
    trainer(tmp_path, [Report(), Curves()], max_steps=2).fit(TinyDetector())
    assert "grpo/kl" in (tmp_path / "report.html").read_text()


def test_nothing_to_report_is_not_an_error(tmp_path):
    trainer(tmp_path, [Report()], max_steps=1).fit(TinyDetector())
    assert not (tmp_path / "report.html").exists()
    assert (tmp_path / "run.json").is_file()


@pytest.mark.parametrize(
    ("error", "reason"), [(RuntimeError("out of memory"), "RuntimeError"), (SystemExit(143), "stopped by a signal")]
)
def test_a_training_that_fails(tmp_path, error, reason):
    class Failing(TinyDetector):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 3:
                raise error
            return super().training_step(batch, batch_idx)

    run = trainer(tmp_path, [Report(), Curves()], **FIT)
    with pytest.raises(type(error)):
        run.fit(Failing())
    assert f"ended early at step 3: {reason}" in (tmp_path / "report.html").read_text()


def test_the_data_are_summarised(source, tmp_path):
    module = SFTModule(policy=source, optimizer=partial(torch.optim.AdamW, lr=1e-3))
    data = SceneDataModule(SceneStyle(), train_scenes=3, val_scenes=1, batch_size=2, num_workers=0)
    trainer(tmp_path, [Report()], max_steps=1).fit(module, data)
    content = json.loads((tmp_path / "data.json").read_text())
    train = content["splits"]["train"]
    records = [data.sources["train"][index] for index in range(3)]
    boxes, widths = sum(len(record.labels) for record in records), [record.image_size[0] for record in records]
    assert (content["name"], list(content["splits"])) == ("SceneDataModule", ["train", "val"])
    assert (train["records"], train["boxes"]) == (3, round(boxes / 3, 2))
    assert train["width"] == [min(widths), max(widths)]
    assert sum(train["labels"].values()) == boxes


def test_a_summary_opens_a_sample_and_survives_damage():
    opened = []

    class Source:
        def __len__(self):
            return 1000

        def __getitem__(self, index):
            opened.append(index)
            if index == 0:
                raise ValueError("damaged")
            return example_prediction().record

    summary = summarise(Source(), 10)
    assert opened == list(range(0, 1000, 100))
    assert (summary["sampled"], summary["unreadable"], summary["records"]) == (9, 1, 1000)
    assert summarise([], 10) == {"records": 0, "sampled": 0, "unreadable": 0}


def test_fast_dev_run_writes_nothing(tmp_path):
    trainer(tmp_path, [Report(), Curves()], fast_dev_run=True).fit(TinyDetector())
    assert list(tmp_path.iterdir()) == []


def test_bad_settings():
    with pytest.raises(ValueError, match="data_sample is -1: give 0"):
        Report(data_sample=-1)
