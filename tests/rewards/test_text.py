"""Rewards of the text: reasoning form and length."""

import json
from dataclasses import replace

import pytest

from tests.shared_data import SHARED, needs_shared
from vr1.rewards import Criterion, Length, ThinkAnswer

RECORDED = SHARED / "completions" / "refcoco_val_qwen2.5-vl-3b.jsonl"


def score(matched, text):
    match = matched([0.9])
    return ThinkAnswer().score(replace(match, detections=replace(match.detections, completion=text)), Criterion())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>so</think><answer>[]</answer>", 1),
        ("\n<think>\nso\n</think>\n\n<answer>\n```json\n[]\n```</answer>\n", 1),
        ("<think></think><answer></answer>", 1),
        ("<think>so</think> hence <answer>[]</answer>", 0),
        ("Well: <think>so</think><answer>[]</answer>", 0),
        ("<think>so</think><answer>[]</answer> Done.", 0),
        ("<answer>[]</answer><think>so</think>", 0),
        ("<think>so</think><answer>[]</answer><answer>[]</answer>", 0),
        ("<think>so <think>so</think></think><answer>[]</answer>", 0),
        ("<think>so</think><answer>[]", 0),
        ("[]", 0),
        ("", 0),
    ],
)
def test_think_answer_forms(matched, text, expected):
    assert score(matched, text) == expected


def test_a_long_text_is_checked_quickly(matched):
    assert score(matched, "<think>" * 100_000) == 0
    assert score(matched, "<think>" + " </answer" * 100_000) == 0


@needs_shared
def test_recorded_answers(matched):
    lines = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    shares = {
        model: sum(score(matched, line["completions"][model]) for line in lines) / len(lines)
        for model in ("baseline", "r1_600")
    }
    assert shares["baseline"] == 0
    assert shares["r1_600"] > 0.99


@pytest.mark.parametrize(("length", "expected"), [(0, 1), (100, 1), (150, 0.75), (300, 0), (9999, 0)])
def test_length_values(matched, length, expected):
    match = matched([])
    match = replace(match, detections=replace(match.detections, completion="x" * length))
    assert Length(full_until=100, none_from=300).score(match, Criterion()) == expected


@pytest.mark.parametrize("limits", [(-1, 5), (5, 5), (9, 5)])
def test_length_wrong_limits_are_errors(limits):
    with pytest.raises(ValueError, match=r"full_until=.* needs 0 <= full_until < none_from"):
        Length(*limits)
