"""The progress display: what it says on a terminal and in a file."""

import re

import pytest
from lightning.pytorch.loggers import CSVLogger

from callbacks import Progress, RuleRefinement
from callbacks.progress import _duration, _readable
from tests.callbacks.tiny import TinyDetector
from tests.trainers import trainer

FIT = {"max_steps": 6, "limit_val_batches": 1.0, "val_check_interval": 3, "enable_progress_bar": True}


def run(tmp_path, progress, **settings):
    trainer(tmp_path, [RuleRefinement(), progress], **(FIT | settings)).fit(TinyDetector([0.25] * 6))


def test_terminal_shows_the_rewards_and_no_version(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "300")
    run(tmp_path, Progress(), logger=CSVLogger(tmp_path))
    shown = capsys.readouterr().out
    for text in ("stage=advanced", "reward=0.25", "recall=0.125", "kl=0.05", "tok/s=1234", "left=0:00", "mAP=0.16"):
        assert text in shown
    assert "v_num" not in shown


def test_a_file_gets_few_plain_lines(tmp_path, capsys):
    run(tmp_path, Progress(line_interval=3600), num_sanity_val_steps=-1)
    shown = capsys.readouterr().out
    assert "\r" not in shown
    lines = [line for line in shown.splitlines() if " | " in line or line.startswith("before")]
    assert [line.split(" | ")[0] for line in lines] == [
        "before training",
        "step 1 of 6",
        "validated at step 3",
        "validated at step 6",
        "done at step 6",
    ]
    assert re.search(
        r"step 1 of 6 \| stage beginner \| reward 0.25 \| recall 0.125 \| kl 0 \| tok/s 1234 \| left 0:0", shown
    )


def test_a_file_gets_every_step_without_an_interval(tmp_path, capsys):
    run(tmp_path, Progress(line_interval=0))
    shown = capsys.readouterr().out
    stages = dict(re.findall(r"^step (\d) of 6 \| stage (\w+)", shown, re.MULTILINE))
    # The stage whose rules the step was rewarded by: the switch is after three of six.
    assert stages == {**dict.fromkeys("123", "beginner"), **dict.fromkeys("456", "advanced")}


def test_off(tmp_path, capsys):
    run(tmp_path, Progress(refresh_rate=0))
    assert "reward" not in capsys.readouterr().out


def test_printing_still_works_in_a_file(tmp_path, capsys):
    class Talkative(TinyDetector):
        def on_train_start(self):
            self.print("hello", "there", sep=", ")

    trainer(tmp_path, [Progress()], max_steps=1, enable_progress_bar=True).fit(Talkative())
    assert "hello, there" in capsys.readouterr().out


@pytest.mark.parametrize("setting", [{"refresh_rate": -1}, {"line_interval": -1.0}])
def test_bad_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is -1"):
        Progress(**setting)


def test_numbers_are_short():
    assert [_readable(value) for value in (0.123456, 12345.6, 0.0, -150.0)] == ["0.123", "12346", "0", "-150"]
    assert [_duration(seconds) for seconds in (5, 65, 3661)] == ["0:05", "1:05", "1:01:01"]
