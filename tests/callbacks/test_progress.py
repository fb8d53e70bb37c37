"""What a user reads during a training: at the start, at every width on a terminal and in a file, and at the end."""

import re
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from callbacks import BeforeAfter, Export, Progress, RuleRefinement
from tests.callbacks.tiny import TinyDetector
from tests.trainers import trainer
from vr1.data import SceneDataModule, SceneStyle
from vr1.modules.sft import SFTModule
from vr1.rollout import Sampling

FIT = {"max_steps": 6, "limit_val_batches": 1.0, "val_check_interval": 3, "enable_progress_bar": True}


class WithOwnTerm(TinyDetector):
    """Logs all terms of the paper's reward, and one of the user's own."""

    def training_step(self, batch, batch_idx):
        self.log_dict({"reward/dual_format": 1.0, "reward/precision": 0.5, "reward/my_own_term": 0.25})
        return super().training_step(batch, batch_idx)


def run(tmp_path, progress, model=None, **settings):
    trainer(tmp_path, [RuleRefinement(), progress], **(FIT | settings)).fit(model or TinyDetector([0.25] * 6))


@pytest.fixture
def terminal(monkeypatch):
    """Makes the output a terminal of some width."""

    def make(columns):
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns))

    return make


def training_lines(shown):
    """The states of the line on a terminal."""
    parts = re.split(r"[\r\n]|\x1b\[A", shown)
    return [part.rstrip() for part in parts if part.startswith("step ")]


def test_a_wide_terminal_shows_everything(tmp_path, capsys, terminal):
    terminal(300)
    run(tmp_path, Progress(), logger=CSVLogger(tmp_path))
    shown = capsys.readouterr().out
    last = training_lines(shown)[-1]
    assert re.sub(r"left \d:\d\d", "left 0:00", last) == (
        "step 6/6  left 0:00  mAP 0.160  reward 0.25  recall 0.125  stage advanced  kl 0.05  tok/s 1234"
    )
    assert "v_num" not in shown


@pytest.mark.parametrize("columns", [80, 120])
def test_the_most_important_numbers_fit_a_terminal(tmp_path, capsys, terminal, columns):
    terminal(columns)
    run(tmp_path, Progress(), WithOwnTerm([0.25] * 6), num_sanity_val_steps=-1)
    lines = training_lines(capsys.readouterr().out)
    assert max(map(len, lines)) < columns
    for line in lines[1:]:
        assert re.match(r"step \d/6  left \d:\d\d  mAP 0\.1\d0  reward 0\.25  my_own_term 0\.25  format 1", line)
    assert ("stage" in lines[-1]) == (columns == 120)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_most_important_numbers_fit_a_file(tmp_path, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    run(tmp_path, Progress(line_interval=0), WithOwnTerm([0.25] * 6), num_sanity_val_steps=-1)
    shown = capsys.readouterr().out
    assert "\r" not in shown
    lines = [line for line in shown.splitlines() if line.startswith("step")]
    assert len(lines) == 6
    assert max(map(len, lines)) <= columns
    assert all("left 0:0" in line and "mAP 0.1" in line and "my_own_term 0.25" in line for line in lines)


def test_a_file_gets_few_plain_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    run(tmp_path, Progress(line_interval=3600), num_sanity_val_steps=-1)
    lines = [line for line in capsys.readouterr().out.splitlines() if "mAP" in line]
    assert [line.split("  ")[0] for line in lines] == [
        "before training",
        "step 1/6",
        "validated at step 3",
        "validated at step 6",
        "done at step 6",
    ]
    assert re.sub(r"left \d:\d\d", "left 0:00", lines[1]) == (
        "step 1/6  left 0:00  mAP 0.100  reward 0.25  recall 0.125  stage beginner  kl 0  tok/s 1234"
    )


def test_a_file_gets_every_step_without_an_interval(tmp_path, capsys):
    run(tmp_path, Progress(line_interval=0))
    stages = dict(re.findall(r"^step (\d)/6  .*  stage (\w+)", capsys.readouterr().out, re.MULTILINE))
    # The stage whose rules the step was rewarded by: the switch is after three of six.
    assert stages == {**dict.fromkeys("123", "beginner"), **dict.fromkeys("456", "advanced")}


@pytest.mark.parametrize(
    ("value", "text"), [(0.123456, "0.123"), (12345.6, "12346"), (0.0, "0"), (-150.0, "-150"), (2.0, "2")]
)
def test_numbers_are_short(tmp_path, capsys, value, text):
    run(tmp_path, Progress(), TinyDetector([value] * 6), max_steps=1)
    assert f"  reward {text}  " in capsys.readouterr().out


def test_a_second_run_is_shown_too(tmp_path, capsys):
    progress = Progress(line_interval=0)
    for _ in range(2):
        run(tmp_path, progress, max_steps=1)
        assert "step 1/1" in capsys.readouterr().out


def test_off(tmp_path, capsys):
    run(tmp_path, Progress(refresh_rate=0))
    assert capsys.readouterr().out == ""


def test_printing_still_works_in_a_file(tmp_path, capsys):
    class Talkative(TinyDetector):
        def on_train_start(self):
            self.print("hello", "there", sep=", ")

    trainer(tmp_path, [Progress()], max_steps=1, enable_progress_bar=True).fit(Talkative())
    assert "hello, there" in capsys.readouterr().out


def fit_scenes(source, folder, callbacks, **settings):
    evaluation = Sampling(group_size=1, temperature=0.0, max_new_tokens=8)
    module = SFTModule(policy=source, evaluation=evaluation, optimizer=partial(torch.optim.AdamW, lr=1e-3))
    data = SceneDataModule(SceneStyle(), train_scenes=4, val_scenes=2, batch_size=2, num_workers=0)
    trainer(folder, callbacks, enable_progress_bar=True, **settings).fit(module, data)


def test_the_start_says_what_is_trained_and_where_results_go(source, tmp_path, capsys):
    fit_scenes(source, tmp_path, [Progress()], max_steps=1)
    lines = capsys.readouterr().out.splitlines()[:5]
    assert lines[0] == "training: SFTModule, max 1 steps, 1 x cpu, precision 32-true"
    assert lines[1] == f"  model    {source.path}"
    trained, total = re.fullmatch(r"  trained  ([\d,]+) of ([\d,]+) parameters", lines[2]).groups()
    assert trained == total
    assert lines[3] == "  data     SceneDataModule: images 4 train, 2 val; batches of 2"
    assert lines[4] == f"  results  {tmp_path}"


def test_the_end_gives_the_next_commands(source, tmp_path, capsys):
    settings = {"max_steps": 1, "limit_val_batches": 1.0, "val_check_interval": 1}
    fit_scenes(source, tmp_path, [Progress(), Export(), BeforeAfter()], **settings)
    lines = capsys.readouterr().out.splitlines()
    end = lines[next(row for row, line in enumerate(lines) if line.startswith("trained: ")) :]
    assert re.fullmatch(rf"trained: 1 of 1 steps in \d:\d\d, results in {tmp_path}", end[0])
    assert end[1:] == [
        "  predict  python -m vr1 predict --config configs/predict.yaml --model.policy.path"
        f" {tmp_path}/model --data.images FOLDER",
        f"  report   python -m vr1 report {tmp_path}",
        f"  compare  python -m vr1 compare {tmp_path} OTHER_RUN",
    ]


def test_without_an_export_the_end_names_the_checkpoint(tmp_path, capsys):
    saving = ModelCheckpoint(tmp_path, save_last=True)
    trainer(tmp_path, [Progress(), saving], **FIT, enable_checkpointing=True).fit(TinyDetector())
    end = capsys.readouterr().out
    assert f"  export   python -m vr1 export --ckpt {tmp_path}/last.ckpt --out {tmp_path}/exported\n" in end
    assert "  metrics  map 0.160, valid_rate 0.500\n" in end


@pytest.mark.parametrize("setting", [{"refresh_rate": -1}, {"line_interval": -1.0}])
def test_bad_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is -1"):
        Progress(**setting)
