"""Every YAML in configs/ says how to use it, parses, and builds what it describes."""

import re
import shlex
import shutil

import pytest
import yaml
from jsonargparse import ArgumentParser

from tests.command import CONFIGS, ROOT
from vr1.commands.trainer import prepare, settings_of
from vr1.rewards import Reward

ALL = sorted(CONFIGS.rglob("*.yaml"))
REWARDS = sorted((CONFIGS / "rewards").glob("*.yaml"))
SWEEPS = sorted((CONFIGS / "sweeps").glob("*.yaml"))
BASE = CONFIGS / "base.yaml"
RUNS = [path for path in ALL if path not in [*REWARDS, *SWEEPS, BASE]]
COMMAND = re.compile(r"^#\s+(python -m vr1 .+)$", re.MULTILINE)


def name(path):
    return str(path.relative_to(CONFIGS))


def head(path):
    """The comment with which a file opens."""
    return re.match(r"(?:#.*\n)*", path.read_text())[0]


def read_reward(path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Reward, "reward")
    return parser.instantiate(parser.parse_args([f"--reward={path}"])).reward


@pytest.mark.parametrize("path", ALL, ids=name)
def test_a_file_opens_with_its_command(path):
    commands = COMMAND.findall(head(path))
    # Every command reads the base, so none names it.
    assert path == BASE or any(str(path.relative_to(ROOT)) in command for command in commands)


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_the_command_builds_its_objects(path, tiny_model, tmp_path, monkeypatch):
    [command] = [found for found in COMMAND.findall(head(path)) if str(path.relative_to(ROOT)) in found]
    arguments = [str(ROOT / word) if word.startswith("configs/") else word for word in shlex.split(command)[3:]]
    monkeypatch.chdir(tmp_path)
    built = prepare([*arguments, "--model.policy.path", str(tiny_model)])
    assert not hasattr(built.model, "policy"), "weights belong to the run, not to its preparation"
    assert built.trainer.callbacks
    assert built.datamodule is not None


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_a_copy_elsewhere_has_the_same_settings(path, tmp_path, monkeypatch):
    [command] = [found for found in COMMAND.findall(head(path)) if str(path.relative_to(ROOT)) in found]
    arguments = shlex.split(command)[3:]
    shutil.copytree(CONFIGS, tmp_path / "copied")
    (tmp_path / "copied" / "base.yaml").unlink()
    monkeypatch.chdir(tmp_path)

    def settings(folder):
        named = [argument.replace("configs/", f"{folder}/") for argument in arguments]
        found = settings_of(named).as_dict()
        found.pop("config")
        return found

    assert settings(tmp_path / "copied") == settings(CONFIGS)


@pytest.mark.parametrize("path", REWARDS, ids=name)
def test_rewards_are_built(path):
    terms = [*read_reward(path).terms]
    if path.stem == "paper" or path.stem.startswith("released"):
        assert terms == ["dual_format", "recall", "precision"]
    assert terms


def test_the_paper_is_the_default():
    written, default = read_reward(CONFIGS / "rewards" / "paper.yaml"), Reward()
    assert vars(written.matcher) == vars(default.matcher)
    assert (written.criterion, written.weights) == (default.criterion, default.weights)
    for ours, theirs in zip(written.terms.values(), default.terms.values(), strict=True):
        assert type(ours) is type(theirs)
        assert settings(ours) == settings(theirs)


def settings(term):
    plain = (str, float, int, bool, type(None))
    return {name: value for name, value in vars(term).items() if isinstance(value, plain) and name != "_device"}


@pytest.mark.parametrize("path", ALL, ids=name)
def test_no_key_is_written_twice(path):
    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            assert len(keys) == len(set(keys)), keys
            return super().construct_mapping(node, deep)

    assert yaml.load(path.read_text(), Loader=Strict)
