import json
import tracemalloc
from pathlib import Path
from typing import get_args

import pytest

from tests.processes import Command
from vr1.commands.score.command import STAGES, main
from vr1.commands.score.scoring import score_file
from vr1.families import Qwen25VL
from vr1.rewards import Reward, Stage

ROOT = Path(__file__).parents[2]
LOOSE = {
    "completion": '```json\n[{"bbox_2d": [0, 0, 100, 60], "label": "cat"}]\n```',
    "boxes_xyxy": [[0, 0, 50, 50]],
    "labels": ["cat"],
    "image_size": [100, 200],
    "input_size": [200, 400],
}
PROSE = LOOSE | {"completion": "A cat, I think.", "note": "é"}


@pytest.fixture
def answers(tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in (LOOSE, PROSE)))
    return file


def scored(answers, *options):
    out = answers.with_name("out.jsonl")
    assert main(["--completions", str(answers), "--out", str(out), *options]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_adds_to_each_line(answers):
    first, second = scored(answers)
    assert first == LOOSE | {
        "rewards": {"dual_format": 1, "recall": 1, "precision": 0.6, "total": 2.6},
        "parsed": 1,
        "matched": 1,
    }
    assert second == PROSE | {
        "rewards": {"dual_format": 0, "recall": 0, "precision": 0, "total": 0},
        "parsed": 0,
        "matched": 0,
    }


def test_scoring_what_was_scored_replaces_its_fields(answers):
    once = scored(answers)
    again = answers.with_name("again.jsonl")
    again.write_text("".join(json.dumps(line) + "\n" for line in once))
    assert scored(again) == once


@pytest.mark.parametrize(
    ("options", "total"),
    [
        (["--stage", "beginner"], 2.6),
        (["--stage", "advanced"], 1.0),
        (["--stage", "off"], 2.6),
        (["--rewards", str(ROOT / "configs/rewards/paper.yaml")], 2.6),
        (["--rewards", str(ROOT / "configs/rewards/released.yaml")], 2.6),
        (["--rewards", str(ROOT / "configs/rewards/released_adaptive.yaml"), "--stage", "advanced"], 1.0),
        (["--rewards.weights", "{recall: -1.0}"], 0.6),
        (["--rewards.criterion.xi0", "0.7"], 1.6),
        (["--family", "vr1.families.Qwen25VL"], 2.6),
    ],
)
def test_settings(answers, options, total):
    assert scored(answers, *options)[0]["rewards"]["total"] == pytest.approx(total)


def test_prints_a_table(answers, capsys):
    assert main(["--completions", str(answers)]) == 0
    table = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert table.pop("answers a second")
    assert table == {
        "answers": "2",
        "follow template": "0.500",
        "valid": "0.500",
        "boxes parsed": "1",
        "boxes matched": "1",
        "boxes true": "2",
        "mean dual_format": "0.500",
        "mean recall": "0.500",
        "mean precision": "0.300",
        "mean total": "1.300",
    }


OTHERS = {
    "InternVL": [
        "<ref>cat</ref><box>[[1, 2, 30, 40]]</box>",
        "<ref>dog</ref><box>[[1, 2, 30, 40], [5, 6, 7, 8]]</box>",
    ],
    "PaliGemma": ["<loc0010><loc0020><loc0500><loc1000> cat"],
    "Qwen2VL": ["<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(30,40)<|box_end|>"],
    "Gemma": ['[{"box_2d": [2, 1, 40, 30], "label": "cat"}]'],
}
FINE = ["A cat, I think.", "[]", LOOSE["completion"], '[{"bbox_2d": [1, 2, 3, 4]}]', "[[1, 2, 3, 4]]"]


@pytest.mark.parametrize("family", OTHERS)
def test_answers_of_another_family_are_counted_and_it_is_named(answers, capsys, family):
    texts = OTHERS[family] + FINE
    answers.write_text("".join(json.dumps(LOOSE | {"completion": text}) + "\n" for text in texts))
    assert main(["--completions", str(answers)]) == 0
    hints = [line for line in capsys.readouterr().out.splitlines() if "try --family" in line]
    count = len(OTHERS[family])
    assert hints == [f"{count} answer{'s look' if count > 1 else ' looks'} like {family}'s: try --family {family}"]
    assert main(["--completions", str(answers), "--family", family]) == 0
    assert f"like {family}'s" not in capsys.readouterr().out


def test_what_could_not_be_read_is_counted(answers, capsys):
    [line] = [json.loads(line) for line in answers.read_text().splitlines()][:1]
    texts = ['[{"box_2d": [1, 2, 3, 4]}, {"box_2d": [1, 2, 3, 4]}]', '[{"label": "cat"}]', '[{"point_2d": [1, 2]}]']
    answers.write_text("".join(json.dumps(line | {"completion": text}) + "\n" for text in texts))
    assert main(["--completions", str(answers)]) == 0
    table = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {name: count for name, count in table.items() if name.startswith("problem")} == {
        "problem: box_2d where the family writes bbox_2d": "2",
        "problem: no box": "1",
        "problem: a point and no box": "1",
    }


@pytest.mark.parametrize(("rewards", "stage"), [("released", "beginner"), ("released_adaptive", "off")])
def test_a_stage_that_the_rewards_do_not_have_is_refused(answers, capsys, rewards, stage):
    options = ["--rewards", str(ROOT / f"configs/rewards/{rewards}.yaml"), "--stage", stage]
    assert main(["--completions", str(answers), *options]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"stage {stage}: these rewards have" in message


def test_a_wrong_line_leaves_no_file_behind(answers, capsys):
    answers.write_text(answers.read_text() * 300 + "{}\n")
    out = answers.with_name("out.jsonl")
    out.write_text("kept")
    assert main(["--completions", str(answers), "--out", str(out)]) == 2
    assert out.read_text() == "kept"
    assert {file.name for file in answers.parent.iterdir()} == {"answers.jsonl", "out.jsonl"}
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "answers.jsonl:601: no " in message


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("answers.jsonl", "is the file of completions"),
        ("./answers.jsonl", "is the file of completions"),
        ("link.jsonl", "is the file of completions"),
        ("no/such/out.jsonl", "cannot be written"),
        (".", "not a file that can be written"),
        ("/dev/null", "not a file that can be written"),
    ],
)
def test_refuses_an_unusable_out_before_reading(answers, capsys, monkeypatch, out, message):
    monkeypatch.chdir(answers.parent)
    Path("link.jsonl").symlink_to(answers)
    # Would be named if it were read.
    answers.write_text("{}")
    assert main(["--completions", str(answers), "--out", out]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("content", "message"), [(None, "is not a file"), ("\n\n", "no line in it")])
def test_refuses_files_without_answers(tmp_path, capsys, content, message):
    file = tmp_path / "answers.jsonl"
    if content is not None:
        file.write_text(content)
    assert main(["--completions", str(file)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stage", "expert"], "beginner"),
        (["--rewards.weights", "{recal: 1.0}"], "recal names no term; the terms are"),
        (["--rewards.criterion.xi1", "0.9"], "needs 0 <= xi1 <= xi2 <= 1"),
        (["--rewards.matcher.init_args.overlap", "dice"], "giou"),
        (["--stagge", "beginner"], "--stagge"),
        (["--rewards.weighs", "{recall: 1.0}"], "weighs"),
    ],
)
def test_refuses_wrong_settings(answers, capsys, options, message):
    try:
        status = main(["--completions", str(answers), *options])
    except SystemExit as exit_:
        status = exit_.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_the_stages_are_those_of_the_criterion():
    assert get_args(Stage) == STAGES


def test_memory_does_not_grow_with_the_file(answers):
    line = answers.read_text()

    def peak(copies):
        answers.write_text(line * copies)
        tracemalloc.start()
        score_file(str(answers), Reward(), Qwen25VL(), out=str(answers.with_name("out.jsonl")))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(1)
    assert peak(3000) < 1.5 * peak(500) + 1e6


def test_shows_progress(answers, capsys, monkeypatch):
    monkeypatch.setattr("vr1.commands.score.scoring.SECONDS_BETWEEN_REPORTS", 0.0)
    assert main(["--completions", str(answers)]) == 0
    assert capsys.readouterr().err.startswith("100% of ")


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for option in ("--completions", "--rewards", "--stage", "--out", "--family", "boxes_xyxy", "input_size"):
        assert option in text


def test_runs_as_a_process(answers, tmp_path):
    answers.write_text("not JSON\n")
    with Command(["score", "--completions", answers], ROOT, tmp_path) as command:
        assert command.wait(300) == 2
        assert command.errors.startswith("vr1 score: error: ")
        assert command.errors.count("\n") == 1
        assert "Traceback" not in command.errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--family", "internvl"], "--family internvl is neither a file nor a class; give one of "),
        (["--family=vr1.families.InternVl"], "--family vr1.families.InternVl is neither"),
        (["--family", "my_families.Mine"], "or a class of your own as module.Class"),
        (["--family", "vr1.rewards.Reward"], "Qwen25VL"),
        (["--rewards", "nowhere.yaml"], "--rewards nowhere.yaml is neither a file nor a class; give one of Reward,"),
        (
            ["--rewards.weigths", "{recall: 1.0}"],
            "): Option 'weigths.recall' is not accepted",
        ),
    ],
)
def test_a_class_that_does_not_exist_is_one_line_with_the_valid_names(answers, capsys, options, message):
    assert main(["--completions", str(answers), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("vr1 score: error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("given", ["vr1.rewards.Criterion", "vr1.families.Qwen25VL"])
def test_a_term_of_another_kind_is_one_short_line(answers, capsys, given):
    assert main(["--completions", str(answers), "--rewards.terms", f"[{given}]"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"vr1 score: error: rewards.terms: {given} is no RewardTerm; known are ")
    assert "DualFormat" in line
    assert "subtypes" not in line.lower()


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        (["--family.help"], "--family"),
        (["--family.help", "CustomFamily"], "--family.frame"),
        (["--rewards.help"], "--rewards.criterion"),
    ],
)
def test_the_help_of_a_class_needs_no_answers(capsys, arguments, setting):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code
    assert setting in capsys.readouterr().out


def test_a_family_is_given_by_its_name(answers):
    assert scored(answers, "--family", "InternVL")[0]["parsed"] == 1


def test_a_bug_of_our_own_shows_its_traceback(answers, monkeypatch):
    def broken(*_):
        raise ValueError("zip() argument 2 is longer than argument 1")

    monkeypatch.setattr(Qwen25VL, "read", broken)
    with pytest.raises(ValueError, match="longer than argument 1"):
        main(["--completions", str(answers)])
