"""Several runs side by side."""

import pytest
from PIL import Image

from tests.runs.folders import make_run
from vr1.commands.compare import main


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path / name / "version_0", lr=lr, last=last) for name, lr, last in RUNS]


RUNS = [("slow", 0.1, 0.3), ("fast", 0.2, 0.05)]


def test_table_and_curves(runs, tmp_path, capsys):
    assert main([*map(str, runs), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "compare.md").read_text()
    assert text in capsys.readouterr().out
    assert "| metric | slow/version_0 | fast/version_0 |" in text
    assert "| 0.100 → 0.300 (0.300 at 4) | 0.100 → 0.050 (0.100 at 0) |" in text
    settings = text[text.index("| setting |") :].splitlines()[2:]
    assert settings == ["| model.optimizer.lr | 0.1 | 0.2 |"], "only what differs, and no output folders"
    assert text.index("| val/map |") < text.index("| optimizer steps |") < text.index("| setting |")
    assert min(Image.open(tmp_path / "out" / "compare.png").size) > 300


def test_the_folder_above_means_the_run_in_it(runs, tmp_path):
    assert main([*(str(run.parent) for run in runs), "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["{0}"], "is the only run; give at least two"),
        (["{0}", "{0}"], "is given twice"),
        (["{0}", "nowhere"], "nowhere: no such run folder"),
        (["{0}", "{1}", "--prefix", "test/"], "no metric begins with test/; give another --prefix, one of reward/"),
    ],
)
def test_errors_are_one_line(arguments, error, runs, capsys):
    assert main([argument.format(*runs) for argument in arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert error in line
