"""Run folders, read again."""

import json

import pytest

from tests.runs.folders import make_run
from vr1.runs import find_run, read_run


def test_a_folder_is_read(tmp_path):
    run = read_run(make_run(tmp_path / "run"))
    assert run.series == {
        "reward/total": [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)],
        "rule/stage": [(1, 0.0), (2, 0.0), (3, 1.0), (4, 1.0)],
        "val/map": [(0, 0.1), (4, 0.3)],
    }
    assert run.switches == [(3, "<b>tight</b>")]
    assert [step for step, _ in run.galleries] == [0, 2, 4]
    assert run.compared.after.step == 4
    assert run.settings["trainer"]["max_steps"] == 4
    assert (run.facts, run.data) == ({}, {})


def test_curves_of_the_whole_training_come_before_the_log_since_the_last_resume(tmp_path):
    folder = make_run(tmp_path / "run")
    curves = {"series": {"val/map": [[0, 0.0], [2, float("nan")], [8, 0.5]]}, "switches": [[5, "advanced"]]}
    (folder / "curves.json").write_text(json.dumps(curves))
    run = read_run(folder)
    assert run.series["val/map"] == [(0, 0.0), (8, 0.5)]
    assert run.switches == [(5, "advanced")]
    assert run.series["rule/stage"], "what Curves does not keep is taken from the log"


def test_the_newest_version_is_meant_by_the_folder_above(tmp_path):
    for number in (0, 2, 10):
        make_run(tmp_path / f"version_{number}")
    (tmp_path / "version_11").mkdir()
    assert find_run(tmp_path).name == "version_10"


def test_the_last_line_of_a_run_that_was_killed(tmp_path):
    folder = make_run(tmp_path / "run")
    with (folder / "metrics.csv").open("a") as file:
        file.write("0,5,0.")
    assert read_run(folder).series["reward/total"][-1] == (5, 0.0)


@pytest.mark.parametrize(("make", "told"), [(False, "no such run folder"), (True, "no run in it")])
def test_no_run(make, told, tmp_path):
    if make:
        (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=told):
        read_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("before_after.json", "{", "damaged"),
        ("before_after.json", "[]", "no JSON object"),
        ("before_after.json", '{"before": {"step": 1}}', "no comparison"),
        ("before_after.json", '{"before": 3}', "no comparison"),
        ("curves.json", '{"series": {}}', "no curves"),
        ("curves.json", '{"series": {"val/map": [[1, null]]}, "switches": []}', "no curves"),
        ("config.yaml", "a: [", "no YAML"),
    ],
)
def test_a_damaged_file(name, text, told, tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}: .*{told}.*remove it to go on without"):
        read_run(folder)
