"""Every command of the README is one that the program understands, and every file that it names is there."""

import json
import re
import shlex
from pathlib import Path

import pytest

from vr1.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.split("&&")[-1].strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if "python -m vr1 " in line
]


@pytest.fixture
def in_project(monkeypatch, tmp_path):
    """The project's root as working folder, with what the README's reader would have at hand in ``tmp_path``."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(tmp_path)
    reward, term = (
        re.findall(r"```yaml\n# my_reward.yaml\n(.*?)```", README, re.DOTALL),
        re.findall(r"```python\n# my_rewards.py\n(.*?)```", README, re.DOTALL),
    )
    (tmp_path / "my_reward.yaml").write_text(reward[0])
    (tmp_path / "my_rewards.py").write_text(term[0])
    answer = {
        "completion": '[{"bbox_2d": [0, 0, 5, 5], "label": "cat"}]',
        "boxes_xyxy": [[0, 0, 5, 5]],
        "labels": ["cat"],
        "image_size": [10, 10],
        "input_size": [10, 10],
    }
    (tmp_path / "answers.jsonl").write_text(json.dumps(answer) + "\n")
    return tmp_path


def test_there_are_commands():
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command, in_project, capsys):
    arguments = shlex.split(command)
    assert arguments[:3] == ["python", "-m", "vr1"]
    own = {"my_reward.yaml", "answers.jsonl", "scored.jsonl"}
    arguments = [str(in_project / word) if word in own else word for word in arguments[3:]]
    if arguments[0] == "score":
        assert main(arguments) == 0
        assert json.loads((in_project / "scored.jsonl").read_text())["rewards"]["total"] == 3
        return
    trained = arguments[0] in ("fit", "validate", "test", "predict")
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--print_config"] if trained else [arguments[0], "--help"])
    if not trained:
        message = capsys.readouterr().out
        # Configurations and what overrides them (options with a dot) are those of `fit`.
        own = [word for word in arguments if word.startswith("--") and word != "--config" and "." not in word]
        assert all(word in message for word in own)
    assert stopped.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"(?<![\w/.])(?:configs|vr1|callbacks|benchmarks)/[\w./]+", README)))
)
def test_named_files_exist(path):
    assert (ROOT / path.rstrip(".")).exists(), f"the README names {path}"
