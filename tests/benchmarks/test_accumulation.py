"""The benchmark of gradient accumulation, with few and short completions."""

import json

import accumulation


def test_accumulation(tmp_path, capsys):
    accumulation.main(rounds=1, prompts=4, batches=2, new_tokens=4, json_file=tmp_path / "times.json")
    found = json.loads((tmp_path / "times.json").read_text())
    assert list(found) == ["1 batch of 4", "2 batches of 2, together", "2 batches of 2, apart"]
    assert all(0 < step["rollout"] < step["step"] for [step] in found.values())
    assert capsys.readouterr().out.count("\n") == 5
