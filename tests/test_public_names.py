"""`from vr1 import GRPOModule`, names of earlier versions, and modules of the user's own."""

import importlib
import os
import subprocess
import sys

import pytest

import vr1
from tests.command import ROOT, run, small
from tests.processes import Command
from vr1.commands import renamed


def python(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", vr1.__all__)
def test_a_public_name_is_there(name):
    assert getattr(vr1, name) is not None
    assert name in dir(vr1)


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'vr1' has no attribute 'Detectors'"):
        vr1.Detectors  # noqa: B018


def test_the_import_waits_for_nothing(tmp_path):
    done = python(tmp_path, "-c", "import sys, vr1; assert not {'torch', 'lightning', 'numpy'} & set(sys.modules)")
    assert done.returncode == 0, done.stderr


def test_the_version(tmp_path, capsys):
    assert run(tmp_path, "--version") == 0
    assert capsys.readouterr().out == f"vr1 {vr1.__version__}\n"


@pytest.mark.parametrize("module", sorted({*renamed.OLD_MODULES.values()}))
def test_the_new_modules_of_old_names_exist(module):
    importlib.import_module(module)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--model", "vr1.module.GRPOModule"], "vr1.module.GRPOModule was renamed to vr1.modules.grpo.GRPOModule"),
        (["--model.family", "vr1.families.Described"], "renamed to vr1.families.CustomFamily"),
        (["--data", "vr1.data.scene_data.SceneDataModule"], "renamed to vr1.data.synthetic.SceneDataModule"),
        (["--model.resample_equal", "2"], "resample_equal was renamed to resample_zero_variance"),
        (["--data.keep", "10"], "keep was renamed to cache_records"),
    ],
)
def test_an_old_name_is_reported_with_the_new_one(arguments, hint, tiny_model, tmp_path, capsys):
    assert run(tmp_path, "fit", *small(tiny_model), *arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert hint in line


@pytest.mark.parametrize("installed", [False, True], ids=["python -m vr1", "vr1"])
def test_modules_of_the_working_folder_are_found(installed, tmp_path):
    """``python -m`` searches the working folder by itself; the installed program does not."""
    term = "from vr1 import RewardTerm\nclass Mine(RewardTerm):\n    def score(self, match, criterion): return 1.0\n"
    (tmp_path / "my_rewards.py").write_text(term)
    (tmp_path / "callbacks.py").write_text("raise RuntimeError('not the package')")
    arguments = ["fit", "--config", str(ROOT / "configs" / "demo.yaml"), "--model.reward", "vr1.rewards.Reward"]
    arguments += ["--model.reward.terms", "{mine: {class_path: my_rewards.Mine}}", "--print_config"]
    start = {"code": "from vr1.__main__ import run; run()", "path": [ROOT]} if installed else {}
    with Command(arguments, tmp_path, tmp_path, **start) as done:
        assert done.wait(300) == 0, done.errors
        assert "class_path: my_rewards.Mine" in done.out
