"""Segments that grow are on for trainings, unless the user or vLLM's sleep forbids them."""

import os
import subprocess
import sys

import pytest

from tests.command import CONFIGS, ROOT, small
from vr1.commands.allocator import use_expandable_segments
from vr1.commands.trainer import prepare, settings_of

_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in _NAMES:
        # Set and removed, so that it is gone again after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_trainer_command_sets_it(tmp_path, tiny_model):
    prepare(["fit", *map(str, small(tiny_model)), "--out", str(tmp_path)])
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


@pytest.mark.parametrize("name", _NAMES)
def test_what_the_user_has_set_stays(tmp_path, tiny_model, monkeypatch, name):
    monkeypatch.setenv(name, "max_split_size_mb:512")
    prepare(["fit", *map(str, small(tiny_model)), "--out", str(tmp_path)])
    assert {key: os.environ[key] for key in _NAMES if key in os.environ} == {name: "max_split_size_mb:512"}


@pytest.mark.parametrize(("sleep", "is_set"), [("true", False), ("false", True)])
def test_an_engine_that_sleeps_forbids_it(tmp_path, tiny_model, sleep, is_set):
    sampler = ["--model.sampler", "vr1.rollout.VLLMSampler", "--model.sampler.sleep", sleep]
    prepare(["fit", *map(str, small(tiny_model)), *sampler, "--out", str(tmp_path)])
    assert ("PYTORCH_ALLOC_CONF" in os.environ) == is_set


def test_reading_settings_sets_nothing():
    settings_of(["fit", "--config", str(CONFIGS / "demo.yaml")])
    assert not set(_NAMES) & os.environ.keys()


def test_an_empty_value_is_a_choice_too():
    environment = {"PYTORCH_ALLOC_CONF": ""}
    assert not use_expandable_segments({}, environment)
    assert environment == {"PYTORCH_ALLOC_CONF": ""}


def test_torch_reads_it_without_a_complaint():
    code = "import torch; torch.zeros(1); print(torch.__version__)"
    environment = {**os.environ, "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
