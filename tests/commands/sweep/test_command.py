"""Sweeps run to their end, over crashes and interruptions."""

import csv
import json
import re
import shlex
import signal
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.commands.sweep.files import started, write_sweep
from vr1.commands.sweep import expand, read_plan
from vr1.commands.sweep.command import main


@pytest.fixture
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def calls(folder):
    """Which trials were run, in order."""
    return (folder / "calls.txt").read_text().split()


def state(folder, number):
    return json.loads((folder / "runs/sweeps/mine" / f"trial_{number:03d}" / "trial.json").read_text())


def test_a_grid_to_its_end(there, capsys):
    assert main([str(write_sweep(there))]) == 0
    out = capsys.readouterr().out
    assert "Best is trial 5: --a.lr=0.2 --a.size=3" in out
    [command] = re.findall(r"Its full command is in (.*)", out)
    assert "--a.lr=0.2 --a.size=3" in Path(command).read_text()
    with (there / "runs/sweeps/mine/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["finished"] * 6
    assert [float(row["val/map"]) for row in rows] == pytest.approx([0.1, 0.2, 0.3, 0.2, 0.4, 0.6])
    first = (there / "runs/sweeps/mine/results.md").read_text().splitlines()[2]
    assert first.startswith("| 5 | 0.2 | 3 | 0.600 | finished |")
    assert min(Image.open(there / "runs/sweeps/mine/results.png").size) > 300
    assert main([str(there / "sweep.yaml")]) == 0
    assert len(calls(there)) == 6, "what was finished is not run again"


def test_one_parameter_and_a_goal_to_minimize(there, capsys):
    path = write_sweep(
        there,
        method="random",
        metric={"name": "val/map", "goal": "minimize"},
        parameters={"a.lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-1}},
    )
    assert main([str(path), "--count", "4", "--out", "elsewhere"]) == 0
    values = [json.loads(path.read_text())["value"] for path in sorted((there / "elsewhere").glob("*/trial.json"))]
    assert f"Best is trial {values.index(min(values))}:" in capsys.readouterr().out
    assert main([str(path), "--count", "6", "--out", "elsewhere"]) == 0
    assert calls(there) == [f"trial_{number:03d}" for number in range(6)]


def test_early_stopping_is_reported_as_missing(there, capsys):
    path = write_sweep(there, early_terminate={"type": "hyperband", "min_iter": 2})
    assert main([str(path), "--count", "1"]) == 0
    assert capsys.readouterr().out.startswith("early_terminate works only with Weights & Biases")


def test_a_crashed_trial_is_reported_and_ends_nothing(there, capsys):
    (there / "crash").write_text("")
    assert main([str(write_sweep(there)), "--count", "3"]) == 0
    assert "trial 1 crashed: status 1: something went wrong" in capsys.readouterr().out
    assert [state(there, number)["state"] for number in range(3)] == ["finished", "crashed", "finished"]
    (there / "crash").unlink()
    assert main([str(there / "sweep.yaml"), "--count", "3"]) == 0
    assert len(calls(there)) == 3
    assert main([str(there / "sweep.yaml"), "--count", "3", "--retry"]) == 0
    assert calls(there)[3:] == ["trial_001"]
    assert state(there, 1)["state"] == "finished"


def test_all_trials_crash(there, capsys):
    path = write_sweep(there, metric={"name": "val/mpa", "goal": "maximize"})
    assert main([str(path), "--count", "2"]) == 1
    out = capsys.readouterr().out
    assert "metric val/mpa was not logged; logged were val/map" in out
    assert "No trial finished." in out


def until_it_waits(process, folder, trial):
    """Wait until the running sweep has come to a trial that waits."""
    deadline = time.monotonic() + 300
    while not (folder / "calls.txt").exists() or trial not in calls(folder):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_in_the_middle_twice_and_resumed(sent, there):
    path, (first, second) = write_sweep(there), ("trial_001", "trial_004")
    (there / "stop").write_text(first)
    for waits in (first, second):
        process = started(path)
        until_it_waits(process, there, waits)
        process.send_signal(sent)
        assert process.wait(timeout=120) != 0
        (there / "stop").write_text(second)
    finished = ["trial_000", "trial_001", "trial_002", "trial_003"]
    assert [state(there, number)["state"] for number in range(5)] == ["finished"] * 4 + ["running"]
    (there / "stop").unlink()
    assert main([str(path)]) == 0
    # What was interrupted is run again; no other trial is, and none is left out.
    assert calls(there) == ["trial_000", first, *finished[1:], second, second, "trial_005"]
    assert [state(there, number)["state"] for number in range(6)] == ["finished"] * 6
    with (there / "runs/sweeps/mine/results.csv").open() as file:
        assert sorted(row["trial"] for row in csv.DictReader(file)) == list("012345")


def test_two_at_once_on_one_folder(there, capsys):
    path = write_sweep(there)
    (there / "stop").write_text("trial_001")
    process = started(path)
    try:
        until_it_waits(process, there, "trial_001")
        assert main([str(path)]) == 2
        assert "is in use by another sweep" in capsys.readouterr().err
    finally:
        process.terminate()
        process.wait(timeout=120)


def test_the_folder_of_another_sweep(there, capsys):
    assert main([str(write_sweep(there)), "--count", "1"]) == 0
    write_sweep(there, parameters={"a.lr": {"values": [7]}})
    assert main([str(there / "sweep.yaml"), "--count", "1"]) == 2
    assert "has trials of another sweep" in capsys.readouterr().err


def test_another_seed_in_the_same_folder(there, capsys):
    path = write_sweep(there, method="random")
    assert main([str(path), "--count", "1"]) == 0
    assert main([str(path), "--count", "1", "--seed", "5"]) == 2
    assert "give the same --seed and --method" in capsys.readouterr().err


def test_values_of_every_kind_reach_the_trial_and_can_be_pasted(there, capsys):
    """As the command line of vr1 reads them: the words of a shell, each value as YAML."""
    (there / "show.py").write_text(
        "import json, sys\nfrom pathlib import Path\n"
        "folder = Path(next(w for w in sys.argv if 'default_root_dir' in w).split('=', 1)[1])\n"
        "(folder / 'seen.json').write_text(json.dumps(sys.argv[1:]))\n"
        "(folder / 'metrics.csv').write_text('step,val/map\\n0,' + str('null' in sys.argv[1]) + '\\n')\n".replace(
            "str('null' in sys.argv[1])", "('1' if 'null' in sys.argv[1] else '0')"
        )
    )
    values = [None, 4, True, [1, 2], {"class_path": "a.B", "init_args": {"x": None}}, "two words"]
    path = write_sweep(
        there,
        command=["${interpreter}", "show.py", "${args}"],
        parameters={"m.size": {"values": values}},
    )
    assert main([str(path)]) == 0
    for number, value in enumerate(values):
        seen = json.loads((there / f"runs/sweeps/mine/trial_{number:03d}/seen.json").read_text())
        assert seen[0].startswith("--m.size=")
        assert yaml.safe_load(seen[0].partition("=")[2]) == value
    [best] = re.findall(r"Best is trial 0: (.*)", capsys.readouterr().out)
    assert shlex.split(best) == ["--m.size=null"]


def test_the_best_trial_can_be_pasted(there, capsys):
    path = write_sweep(there, parameters={"a.lr": {"value": 2}, "a.note": {"value": 'it\'s a "note" & more'}})
    assert main([str(path)]) == 0
    [best] = re.findall(r"Best is trial 0: (.*)", capsys.readouterr().out)
    assert shlex.split(best) == ["--a.lr=2", '--a.note=it\'s a "note" & more']


def test_arguments_without_an_equals_sign(tmp_path):
    plan = read_plan(write_sweep(tmp_path, command=["${interpreter}", "x.py", "${args_no_equals}"]))
    assert expand(plan, {"a": None, "b": "x=y", "c": 1e-5})[2:] == ["--a", "null", "--b", "x=y", "--c", "1e-05"]


def test_a_sweep_without_a_metric(there, capsys):
    path = write_sweep(there, metric=None)
    assert main([str(path), "--count", "3"]) == 0
    out = capsys.readouterr().out
    assert "the file names no metric: trials are compared by val/map, the highest first" in out
    assert "Best is trial 2:" in out
    (there / "script.py").write_text((there / "script.py").read_text().replace("val/map", "other"))
    assert main([str(path), "--count", "2", "--out", "elsewhere"]) == 0
    assert "no trial logged val/map: the trials are not compared" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("printed", "problem"),
    [
        (
            ["vr1: error: lr: expected float, got 'x'", "`vr1 fit --help` lists the settings"],
            "lr: expected float, got 'x'",
        ),
        (["Traceback", "ValueError: no batch", "warning: a worker was still running"], "ValueError: no batch"),
        (["torch.OutOfMemoryError: too large", "", "bye"], "torch.OutOfMemoryError: too large"),
        (["it broke"], "it broke"),
        ([], "no output"),
    ],
)
def test_the_error_of_a_trial_is_shown_and_not_what_follows_it(there, capsys, printed, problem):
    (there / "fails.py").write_text(f"import sys\nprint({chr(10).join(printed)!r})\nsys.exit(2)\n")
    path = write_sweep(there, command=["${interpreter}", "fails.py", "${args}"])
    assert main([str(path), "--count", "1"]) == 1
    assert re.search(rf"trial 0 crashed: status 2: .*{re.escape(problem)}\n", capsys.readouterr().out)
    assert problem in (there / "runs/sweeps/mine/results.md").read_text()
