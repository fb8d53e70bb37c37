"""Sweep files: errors name the key, its value and the fix."""

import pytest

from tests.commands.sweep.files import write_sweep
from vr1.commands.sweep import read_plan


def test_a_file_is_read(tmp_path):
    plan = read_plan(write_sweep(tmp_path, run_cap=4))
    assert (plan.name, plan.method, plan.metric, plan.goal, plan.limit) == ("mine", "grid", "val/map", "maximize", 4)
    assert list(plan.parameters) == ["a.lr", "a.size"]


def test_another_method_may_be_asked_for(tmp_path):
    assert read_plan(write_sweep(tmp_path, method="bayes"), method="random").method == "random"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "bayes"}, "method=bayes needs the server of Weights & Biases; here give --method random"),
        ({"method": "gird"}, "method='gird'; give grid or random"),
        ({"metric": {"goal": "maximize"}}, "metric=.* names nothing"),
        ({"metric": "val/map"}, "metric='val/map' names nothing"),
        ({"metric": {"name": "val/map", "goal": "high"}}, "metric.goal='high'; give maximize or minimize"),
        ({"command": None}, r"the command has no \$\{args\}"),
        (
            {"command": ["${env}", "python", "${args_json}", "${args}"]},
            r"\$\{args_json\} in the command is not a known macro",
        ),
        ({"command": ["${program}", "${args}"]}, "program is not set"),
        ({"command": "python -m vr1 fit ${args}"}, r"command='python -m .*'; write it as a list of arguments"),
        ({"run_cap": "six"}, "run_cap='six'; give the number of trials"),
        ({"run_cap": 0}, "run_cap=0; give the number of trials"),
        ({"parameters": None}, "parameters=None; name at least one"),
        ({"parameters": {"a.lr": {"values": 0.1}}}, r"parameters.a.lr.values=0.1; list one or more"),
        ({"parameters": {"a.lr": {"values": []}}}, r"parameters.a.lr.values=\[\]; list one or more"),
        ({"parameters": {"a.lr": 0.1}}, r"parameters.a.lr=0.1; write \{value: 0.1\}"),
        ({"parameters": {"a": {"parameters": {}}}}, r"parameters\.a\.parameters=\{\}; name at least one"),
        ({"parameters": {"a": {"parameters": {"b": 3}}}}, r"parameters\.a\.b=3; write \{value: 3\}"),
        (
            {"parameters": {"a.b": {"value": 1}, "a": {"parameters": {"b": {"value": 2}}}}},
            r"parameters\.a\.b is written twice",
        ),
        ({"parametres": {}}, "parametres is no key of a sweep"),
    ],
)
def test_mistakes(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_plan(write_sweep(tmp_path, **changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        (b"a: \xff", "sweep.yaml: not valid YAML"),
        ("- a", "has no settings"),
        ("method: grid\nmethod: random\n", "'method' is written twice"),
    ],
)
def test_files_that_are_none(text, message, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        read_plan(path)
    with pytest.raises(ValueError, match="no such file"):
        read_plan(tmp_path / "other.yaml")


def test_nested_parameters_are_named_by_their_path(tmp_path):
    nested = {"model": {"parameters": {"optimizer": {"parameters": {"lr": {"values": [1]}}}, "kl": {"value": 2}}}}
    plan = read_plan(write_sweep(tmp_path, parameters=nested))
    assert plan.parameters == {"model.optimizer.lr": {"values": [1]}, "model.kl": {"value": 2}}


def test_without_a_metric(tmp_path):
    plan = read_plan(write_sweep(tmp_path, metric=None))
    assert (plan.metric, plan.goal, plan.names_metric) == ("val/map", "maximize", False)


def test_numbers_that_yaml_takes_for_texts(tmp_path):
    path = write_sweep(tmp_path)
    head = path.read_text().partition("parameters:")[0]
    path.write_text(f"{head}parameters:\n  lr: {{min: 1e-6, max: 1E2, q: 2.e3, values: [5e-05, '1e-6', e5, 1e]}}\n")
    assert read_plan(path).parameters["lr"] == {
        "min": 1e-6,
        "max": 100.0,
        "q": 2000.0,
        "values": [5e-5, "1e-6", "e5", "1e"],
    }
