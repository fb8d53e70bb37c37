"""Table and figure of the scaling benchmark from made-up steps, and the reward benchmark."""

import json

import rewards
import scaling
from grpo_step import turns
from PIL import Image


def test_table_and_figure(tmp_path, monkeypatch, capsys):
    def measured(settings, rounds, sides, folder):
        seconds = (285 + settings.group_size * settings.new_tokens) / 1000
        parts = {"prefill": 0.1, "decode": 0.2, "policy forward": seconds, "policy backward": 2 * seconds}
        turn = turns.Turn(seconds=4 * seconds, busy_seconds=seconds, parts=parts, peak_bytes=10**9)
        return {side: [turn] * rounds for side in sides}

    monkeypatch.setattr(scaling, "compare", measured)
    scaling.main(out=tmp_path, rounds=1)
    lines = (tmp_path / "scaling.md").read_text().splitlines()
    assert sum(line.startswith("| group size") for line in lines) == 4
    assert lines[-1] == "training pass of vr1, G = 16 / G = 4: 2.42 times, its tokens 2.42 times"
    found = json.loads((tmp_path / "scaling.json").read_text())
    assert found["image side, px"]["672"]["settings"]["prompt_tokens"] == 285 - 256 + 576
    with Image.open(tmp_path / "scaling.png") as image:
        assert image.width > image.height > 300


def test_rewards(tmp_path, capsys):
    rewards.main(boxes=[1, 3], completions=16, rounds=1, json_file=tmp_path / "rewards.json")
    found = json.loads((tmp_path / "rewards.json").read_text())
    assert found.keys() == {"1", "3"}
    assert found["3"].keys() == {"read", "match", "reward", "credit"}
    assert capsys.readouterr().out.count("\n") == 4
