"""The sweep files of this repository: by Weights & Biases' own schema, and by our own reader."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from tests.commands.sweep.files import CONFIGS
from vr1.commands.sweep import expand, parameters_of, read_plan

# The file of the package `sweeps` 0.3.0 (MIT, its notice is next to it), which checks what `wandb sweep` is given. The
# package itself needs an older numpy than everything else here.
SCHEMA = json.loads((Path(__file__).parent / "wandb_sweep_schema.json").read_text())
SWEEPS = sorted((CONFIGS / "sweeps").glob("*.yaml"))


def test_there_are_sweeps():
    assert len(SWEEPS) >= 2


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_weights_and_biases_takes_it(path):
    jsonschema.Draft7Validator(SCHEMA).validate(yaml.safe_load(path.read_text()))


def test_the_schema_notices_mistakes():
    wrong = yaml.safe_load(SWEEPS[0].read_text()) | {"early_terminate": {"type": "hyperbandage"}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(SCHEMA).validate(wrong)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_trials_differ_in_every_parameter(path):
    plan = read_plan(path)
    drawn = parameters_of(plan, None if plan.method == "grid" else 30)
    for name in plan.parameters:
        assert len({parameters[name] for parameters in drawn}) > 1, name
    assert yaml.safe_load(path.read_text())["early_terminate"]["type"] == "hyperband"


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_agent_of_weights_and_biases_makes_the_same_arguments(path):
    plan = read_plan(path)
    parameters = parameters_of(plan, 1)[0]
    theirs = create_sweep_command_args({"args": {name: {"value": value} for name, value in parameters.items()}})
    assert expand(plan, parameters)[-len(parameters) :] == theirs["args"]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_head_says_how_to_run_it(path):
    head = re.match(r"(?:#.*\n)*", path.read_text())[0]
    name = path.relative_to(CONFIGS.parent)
    assert f"python -m vr1 sweep {name}" in head
    assert f"wandb sweep {name}" in head
    assert "wandb agent" in head
