"""Every YAML in configs/ says how to use it, parses, and makes what it describes."""

import re
import shlex

import pytest
import yaml
from jsonargparse import ArgumentParser

from tests.command import CONFIGS, ROOT, run
from vr1.commands import trainer
from vr1.rewards import Reward

ALL = sorted(CONFIGS.rglob("*.yaml"))
REWARDS = sorted((CONFIGS / "rewards").glob("*.yaml"))
SWEEPS = sorted((CONFIGS / "sweeps").glob("*.yaml"))
RUNS = [path for path in ALL if path not in REWARDS + SWEEPS]
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


@pytest.fixture
def made(monkeypatch):
    """What commands make, instead of running it."""
    found = []
    monkeypatch.setattr(trainer._CLI, "_run_subcommand", lambda self, subcommand: found.append(self))
    return found


@pytest.mark.parametrize("path", ALL, ids=name)
def test_a_file_opens_with_its_command(path):
    commands = COMMAND.findall(head(path))
    assert any(str(path.relative_to(ROOT)) in command for command in commands)


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_the_command_makes_its_objects(path, made, tiny_model, tmp_path):
    [command] = [found for found in COMMAND.findall(head(path)) if str(path.relative_to(ROOT)) in found]
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in shlex.split(command)[3:]]
    assert run(tmp_path, *words, "--model.policy.path", tiny_model) == 0
    [command_line] = made
    assert not hasattr(command_line.model, "policy"), "weights belong to the run, not to its preparation"
    assert command_line.trainer.callbacks
    assert command_line.datamodule is not None


@pytest.mark.parametrize("path", REWARDS, ids=name)
def test_rewards_are_made(path):
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
