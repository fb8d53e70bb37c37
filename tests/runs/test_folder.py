"""What is read from a run folder, and what is an error."""

import json

import pytest

from tests.runs.folders import make_run
from vr1.runs import differing, find_run, flat_settings, read_run


def test_a_folder_is_read(tmp_path):
    run = read_run(make_run(tmp_path / "run"))
    assert run.series == {
        "reward/total": [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)],
        "rule/stage": [(1, 0.0), (2, 0.0), (3, 1.0), (4, 1.0)],
        "val/map": [(0, 0.1), (4, 0.3)],
    }
    assert run.switches == [(3, "<b>tight</b>")]
    assert [step for step, _ in run.galleries] == [0, 2, 4]
    assert run.comparison.after.step == 4
    assert run.settings["trainer"]["max_steps"] == 4
    assert (run.facts, run.data) == ({}, {})


def test_curves_of_the_whole_training_come_before_the_log_since_the_last_resume(tmp_path):
    folder = make_run(tmp_path / "run")
    curves = {"series": {"val/map": [[0, 0.0], [2, float("nan")], [8, 0.5]]}, "switches": [[5, "advanced"]]}
    (folder / "curves.json").write_text(json.dumps(curves))
    run = read_run(folder)
    assert run.series["val/map"] == [(0, 0.0), (8, 0.5)]
    assert run.switches == [(5, "advanced")]
    assert run.series["rule/stage"], "what curves.json lacks is taken from the log"


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


@pytest.mark.parametrize(("make", "error"), [(False, "no such run folder"), (True, "no run in it")])
def test_no_run(make, error, tmp_path):
    if make:
        (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=error):
        read_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("before_after.json", "{", "damaged"),
        ("before_after.json", "[]", "no JSON object"),
        ("before_after.json", '{"before": {"step": 1}}', "no comparison"),
        ("before_after.json", '{"before": 3}', "no comparison"),
        ("curves.json", '{"series": {}}', "no curves"),
        ("curves.json", '{"series": {"val/map": [[1, null]]}, "switches": []}', "no curves"),
        ("config.yaml", "a: [", "not YAML"),
    ],
)
def test_a_damaged_file(name, text, error, tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}: .*{error}.*remove it to continue without"):
        read_run(folder)


def test_names_are_those_of_the_command_line():
    config = {
        "trainer": {"callbacks": [{"class_path": "a.Gallery", "init_args": {"num_images": 4}}, {"class_path": "b.C"}]},
        "model": {"class_path": "m.M", "init_args": {"loss": {"class_path": "l.L", "init_args": {"kl_coef": 0.1}}}},
        "data": {"sizes": [1, 2]},
        "ckpt_path": None,
    }
    assert flat_settings(config) == {
        "trainer.callbacks.Gallery": "a.Gallery",
        "trainer.callbacks.Gallery.num_images": 4,
        "trainer.callbacks.C": "b.C",
        "model": "m.M",
        "model.loss": "l.L",
        "model.loss.kl_coef": 0.1,
        "data.sizes": [1, 2],
        "ckpt_path": None,
    }


def test_two_objects_of_one_class():
    stack = {"loggers": [{"class_path": "a.L", "init_args": {"x": 1}}, {"class_path": "b.L", "init_args": {"x": 2}}]}
    assert flat_settings(stack) == {"loggers.L": "a.L", "loggers.L.x": 1, "loggers.L.1": "b.L", "loggers.L.1.x": 2}


def test_output_folders_do_not_count_as_a_difference():
    one = {"trainer.default_root_dir": "a", "model.lr": 0.1}
    assert differing([one, {"trainer.default_root_dir": "b", "model.lr": 0.1}]) == {}
    assert differing([one, {"model.kl": 0.2, "model.lr": 0.1}]) == {"model.kl": [None, 0.2]}


def test_an_object_that_one_run_lacks_is_one_row():
    one = {
        "trainer.callbacks.Gallery": "a.Gallery",
        "trainer.callbacks.Gallery.columns": 2,
        "model": "m.A",
        "model.lr": 1,
    }
    other = {"model": "m.B", "model.lr": 2, "model.beta": 3}
    assert differing([one, other]) == {
        "trainer.callbacks.Gallery": ["a.Gallery", None],
        "model": ["m.A", "m.B"],
        "model.lr": [1, 2],
    }
