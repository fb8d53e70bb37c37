"""The commands of the sweep files, expanded as an agent would, and given to the command line itself."""

import pytest
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from tests.command import CONFIGS, ROOT
from tests.commands.sweep.files import write_sweep
from vr1.commands.sweep import expand, parameters_of, read_plan
from vr1.commands.trainer import prepare
from vr1.policy import Lora


@pytest.fixture
def build(monkeypatch):
    """Builds what a trial of a sweep describes, without running it."""
    monkeypatch.chdir(ROOT)

    def build(name, folder=None, *arguments):
        plan = read_plan(CONFIGS / "sweeps" / f"{name}.yaml")
        parameters = parameters_of(plan, 1)[0]
        expanded = expand(plan, parameters, folder)
        assert expanded[1:3] == ["-m", "vr1"]
        return parameters, prepare([*expanded[3:], *map(str, arguments)])

    return build


def test_training(build, tiny_model, tmp_path):
    parameters, command = build("training", tmp_path / "trial_000", "--model.policy.path", tiny_model)
    module, trainer = command.model, command.trainer
    assert module.sampling.group_size == parameters["model.sampling.group_size"]
    assert module.loss.kl_coef == parameters["model.loss.kl_coef"]
    stages = trainer.callbacks[[type(item).__name__ for item in trainer.callbacks].index("RuleRefinement")].stages
    assert stages[-1].at_fraction == parameters["trainer.callbacks.switch_at"]
    assert [stage.name for stage in stages] == ["overlap", "beginner"]
    assert [type(logger) for logger in trainer.loggers] == [CSVLogger]
    assert trainer.loggers[0].log_dir.rstrip("/") == str(tmp_path / "trial_000")
    assert command.config.model.init_args.optimizer.init_args.lr == parameters["model.optimizer.lr"]


def test_rewards(build, tiny_model, tmp_path):
    parameters, command = build("rewards", tmp_path / "trial_000", "--model.policy.path", tiny_model)
    reward = command.model.reward
    assert reward.weights["recall"] == parameters["model.reward.weights.recall"]
    assert reward.weights["precision"] == parameters["model.reward.weights.precision"]
    assert reward.weights["dual_format"] == 1.0
    assert reward.criterion.xi0 == parameters["model.reward.criterion.xi0"]
    assert (reward.criterion.xi1, reward.criterion.xi2) == (0.5, 0.75)


@pytest.mark.parametrize("name", ["training", "rewards"])
def test_with_weights_and_biases(name, build, tiny_model, tmp_path):
    arguments = ["--model.policy.path", tiny_model, "--trainer.default_root_dir", tmp_path]
    _, command = build(name, None, *arguments, "--trainer.logger.save_dir", tmp_path)
    [logger] = [logger for logger in command.trainer.loggers if isinstance(logger, WandbLogger)]
    assert logger._offline is False


@pytest.mark.parametrize("words", ["${args}", "${args_no_equals}"])
@pytest.mark.parametrize("lora", [{}, {"model.policy.lora.rank": {"value": 2}}], ids=["full", "lora"])
def test_null_and_a_value_of_the_same_setting(words, lora, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    quantize = {"values": [None, "nf4"]} if lora else {"value": None}
    command = ["${interpreter}", "-m", "vr1", "fit", "--config", "configs/demo.yaml", words]
    path = write_sweep(tmp_path, command=command, parameters={**lora, "model.policy.quantize": quantize})
    plan = read_plan(path)
    policies = []
    for number, parameters in enumerate(parameters_of(plan, None)):
        arguments = expand(plan, parameters, tmp_path / f"trial_{number:03d}")[3:]
        policies.append(prepare([*arguments, "--model.policy.path", str(tiny_model)]).model.source)
    assert [policy.quantize for policy in policies] == ([None, "nf4"] if lora else [None])
    assert all(policy.lora == (Lora(rank=2) if lora else None) for policy in policies)
