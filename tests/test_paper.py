"""The small reproduction of the paper: which commands run, which are not repeated, and its verdicts."""

import asyncio
import json
import sys

import numpy as np
import paper
import paper_findings
import pytest
import yaml
from paper_figures import draw_curves, draw_findings

from tests.command import run


@pytest.fixture
def calls(monkeypatch):
    """The commands that would be run; each writes the files that it would write."""
    run_commands = []

    async def call(arguments, job):
        run_commands.append((job.name, arguments[3], arguments))
        if arguments[3] == "fit":
            (job.folder / "checkpoints").mkdir(exist_ok=True)
            (job.folder / "checkpoints" / "step.ckpt").write_text("")
            if job.name in call.failing:
                raise paper.RunError("fit ended with status 1")
            series = {"val/map": [[0, 0.1], [2, 0.2]]}
            (job.folder / "curves.json").write_text(json.dumps({"series": series}))
        else:
            number = 0.1 if job.name == "start" else 0.2 + int(job.name[-1]) / 10
            figures = dict.fromkeys(paper_findings.METRICS, number)
            (job.folder / "evaluation").mkdir(exist_ok=True)
            measured = {"sets": {"seen": figures, "unseen": figures}}
            (job.folder / "evaluation" / "metrics.json").write_text(json.dumps(measured))

    call.failing = set()
    monkeypatch.setattr(paper, "run_command", call)
    return run_commands, call.failing


def test_a_finished_run_is_not_repeated(calls, tmp_path, capsys):
    commands, _ = calls
    settings = {"out": tmp_path, "seeds": [0, 1], "only": ["sft", "vision_r1"], "jobs": 2}
    assert paper.paper(**settings) == 0
    trained = ["sft_0", "sft_1", "vision_r1_0", "vision_r1_1"]
    assert sorted(name for name, command, _ in commands if command == "fit") == trained
    assert sorted(name for name, command, _ in commands if command == "test") == sorted(["start", *trained])
    table = (tmp_path / "paper.md").read_text()
    assert "| Vision-R1 | 25.0 (20.0, 30.0) | 25.0 (20.0, 30.0) |" in table
    assert "| 42.1 | 23.3 |" in table
    assert (tmp_path / "findings.png").is_file()
    assert (tmp_path / "curves.png").is_file()
    assert not list(tmp_path.glob("*/checkpoints"))
    commands.clear()
    assert paper.paper(**settings) == 0
    assert commands == []


def test_an_interrupted_run_resumes_from_its_newest_checkpoint(calls, tmp_path):
    commands, failing = calls
    failing.add("sft_0")
    settings = {"out": tmp_path, "seeds": [0], "only": ["sft", "vision_r1"]}
    assert paper.paper(**settings) == 1
    assert [name for name, command, _ in commands if command == "test"] == ["start", "vision_r1_0"]
    failing.clear()
    commands.clear()
    assert paper.paper(**settings) == 0
    (name, command, arguments), (_, last, _) = commands
    assert (name, command, last) == ("sft_0", "fit", "test")
    assert arguments[-2:] == ["--ckpt_path", str(tmp_path / "sft_0" / "checkpoints" / "step.ckpt")]


def test_a_run_with_other_settings_is_an_error(calls, tmp_path, capsys):
    settings = {"out": tmp_path, "seeds": [0], "only": ["sft"]}
    assert paper.paper(**settings, steps=2) == 0
    assert paper.paper(**settings, steps=3) == 1
    assert "has a run with other settings" in capsys.readouterr().err


def test_the_error_names_a_command_that_fails(tmp_path):
    job = paper.start_job(tmp_path, 1, [])
    job.folder.mkdir()
    arguments = [sys.executable, "-c", "import os, sys; print(os.environ['OMP_NUM_THREADS']); sys.exit(3)", "test"]
    with pytest.raises(paper.RunError, match=r"test ended with status 3; its output is in .*output.txt"):
        asyncio.run(paper.run_command(arguments, job))
    assert (job.folder / "output.txt").read_text() == "1\n"


@pytest.mark.parametrize("variant", paper_findings.VARIANTS.values(), ids=lambda variant: variant.name)
def test_every_training_has_the_settings_of_its_title(variant, tmp_path, capsys):
    job = paper.training_job(variant, 3, tmp_path, 7, 1, [], [])
    assert run(tmp_path, *job.train[3:], "--print_config") == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["seed_everything"], config["trainer"]["max_steps"]) == (3, 7)
    assert config["trainer"]["logger"]["init_args"]["version"] == f"{variant.name}_3"
    model, callbacks = config["model"], config["trainer"]["callbacks"]
    credited = variant.name in ("box_credit", "supervised_term", "warm_start", "warm_start_step")
    averaged = credited or variant.name == "sft_average"
    assert (callbacks[-1]["class_path"] == "callbacks.WeightAverage") == averaged
    last = callbacks[-2 if averaged else -1]
    if "sft" in variant.configs:
        assert model["class_path"].endswith("SFTModule")
        assert model["init_args"]["target_order"] == ("annotated" if variant.name == "sft" else "sorted")
        return
    never = dict.fromkeys(("no_refinement", "box_credit", "supervised_term", "warm_start"), 1.0)
    switch = {**never, "step_third": pytest.approx(1 / 3), "warm_start_step": 0.75}.get(variant.name, 0.5)
    assert (last["class_path"], last["init_args"]["switch_at"]) == ("callbacks.RuleRefinement", switch)
    advantage = (model["init_args"]["advantage"] or {}).get("class_path")
    assert advantage == ("vr1.advantage.BoxAdvantage" if credited else None)
    supervised = model["init_args"]["supervised"]
    assert supervised == ({"weight": 0.3, "target_order": "sorted"} if variant.name == "supervised_term" else None)
    warm_start = model["init_args"]["warm_start"]
    assert (warm_start is not None) == variant.name.startswith("warm_start")
    if warm_start is not None:
        assert (warm_start["steps"], warm_start["lr"], warm_start["target_order"]) == (50, 1e-4, "sorted")
    reward = (model["init_args"]["reward"] or {}).get("init_args", {})
    terms = [term["class_path"] for term in reward.get("terms") or []]
    assert terms == (["vr1.rewards.DualFormat", "vr1.rewards.Precision"] if variant.name == "precision_only" else [])
    label = (reward.get("matcher") or {}).get("init_args", {}).get("label", 0.0)
    assert label == (1.0 if variant.name == "box_and_label" else 0.0)


def test_the_measurement_covers_both_domains(tmp_path, capsys):
    job = paper.start_job(tmp_path, 1, [])
    assert run(tmp_path, *job.test[3:], "--print_config") == 0
    parts = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["parts"]
    training = yaml.safe_load((paper.CONFIGS / "training.yaml").read_text())["data"]["init_args"]["style"]
    seen, unseen = (parts[name]["init_args"]["style"] for name in ("seen", "unseen"))
    assert {name: seen[name] for name in training} == training
    assert not set(seen["shapes"]) & set(unseen["shapes"])
    assert seen["background"] != unseen["background"]


def test_a_difference_and_its_standard_error():
    random = np.random.default_rng(0)
    first, second = random.normal(30, 1, 3), random.normal(28, 2, 4)
    results = {"a": {"seen": {"map": first.tolist()}}, "b": {"seen": {"map": second.tolist()}}}
    finding = paper_findings.Finding(text="", ahead="a", behind="b")
    welch = np.sqrt(first.var(ddof=1) / 3 + second.var(ddof=1) / 4)
    assert paper_findings.difference(results, finding) == pytest.approx((first.mean() - second.mean(), welch))


@pytest.mark.parametrize(
    ("ahead", "behind", "expected"),
    [
        ([5.0, 5.1, 5.2], [3.0, 3.1, 3.2], "yes"),
        ([3.0, 3.1, 3.2], [5.0, 5.1, 5.2], "no"),
        ([3.0, 5.0, 4.0], [3.9, 3.0, 4.6], "within the spread of seeds"),
        ([9.0], [1.0], "one seed only"),
        ([], [1.0, 2.0], "not measured"),
    ],
)
def test_the_verdict_depends_on_the_spread_of_the_seeds(ahead, behind, expected):
    results = {"vision_r1": {"seen": {"map": ahead}}, "sft": {"seen": {"map": behind}}}
    assert paper_findings.verdict(results, paper_findings.FINDINGS[1]) == expected


def test_the_papers_differences_are_those_of_its_numbers():
    for finding in paper_findings.FINDINGS:
        numbers = paper_findings.PAPER_SEEN if finding.group == "seen" else paper_findings.PAPER_UNSEEN
        if finding.metric == "ar_100":
            numbers = {"griffon": paper_findings.PAPER_RECALL}
        stated = [float(part) for part in finding.paper.split(", ") if part]
        differences = [
            round(model[finding.ahead] - model[finding.behind], 1)
            for model in numbers.values()
            if finding.ahead in model and finding.behind in model
        ]
        assert stated[: len(differences)] == differences, finding.text
        ours = ("box_credit", "supervised_term", "warm_start", "warm_start_step")
        assert bool(differences) != (finding.behind == "sft_sorted" or finding.ahead in ours), finding.text


def test_pictures_of_part_of_the_runs(tmp_path):
    figures = {"seen": {"map": [20.0]}, "unseen": {"map": [30.0]}}
    picture = draw_findings({"start": figures, "sft": {"seen": {"map": [21.0, 23.0]}, "unseen": {"map": [30.0, 28.0]}}})
    assert min(picture.size) > 300
    assert draw_curves(tmp_path) is None
