import json
from dataclasses import replace

import pytest

from tests.shared_data import SHARED, needs_shared
from vr1.rewards import Criterion, ThinkAnswer

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
def test_forms(matched, text, expected):
    assert score(matched, text) == expected


def test_a_long_text_is_read_in_an_instant(matched):
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
