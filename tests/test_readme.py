"""Every command of the README and of the documentation is one that the program understands, and every file is there."""

import json
import re
from importlib.util import find_spec
from unittest import mock

import pytest

from tests.docs.pages import PAGES, README, ROOT, blocks, commands, named_blocks
from vr1.cli import COMMANDS, TRAINER_COMMANDS, main

ALL = commands()
VR1 = [command for command in ALL if command.words[:3] == ["python", "-m", "vr1"]]
BENCHMARKS = [command for command in ALL if command.words[0] == "python" and command.words[1].endswith(".py")]
OTHER = [command for command in ALL if command not in VR1 and command not in BENCHMARKS]
OWN = {"my_reward.yaml", "my_family.yaml", "my_data.yaml", "answers.jsonl", "scored.jsonl"}
ANSWER = {
    "completion": '[{"bbox_2d": [0, 0, 5, 5], "label": "cat"}]',
    "boxes_xyxy": [[0, 0, 5, 5]],
    "labels": ["cat"],
    "image_size": [10, 10],
    "input_size": [10, 10],
}


@pytest.fixture
def in_project(monkeypatch, tmp_path):
    """The project's root as working folder, with what a reader would have at hand in ``tmp_path``."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "answers.jsonl").write_text(json.dumps(ANSWER) + "\n")
    return tmp_path


def write_files_of(page, folder):
    """Write the files that a page has the reader write; those of the README where it has none of the name."""
    for language in ("yaml", "python"):
        for of, name, block in sorted(named_blocks(language), key=lambda found: found[0] == ROOT / page):
            if of in (README, ROOT / page) or not (folder / name).exists():
                (folder / name).write_text(block)


def test_there_are_commands():
    assert len([command for command in VR1 if command.page == "README.md"]) >= 5
    pages = {command.page for command in VR1}
    assert {f"docs/{name}" for name in ("learn/quickstart.md", "how_to/resume.md", "how_to/sweep.md")} <= pages
    assert {command.words[3] for command in VR1} == {*COMMANDS, *TRAINER_COMMANDS}, "each command is shown somewhere"


@pytest.mark.parametrize("command", VR1, ids=str)
def test_commands_are_understood(command, in_project, capsys):
    write_files_of(command.page, in_project)
    arguments = [str(in_project / word) if word in OWN else word for word in command.words[3:]]
    if arguments[0] == "score":
        arguments += ["--out", str(in_project / "scored.jsonl")] if "--out" not in arguments else []
        arguments = [str(in_project / "coco") if word == "out" else word for word in arguments]
        assert main(arguments) == 0
        assert "total" in json.loads((in_project / "scored.jsonl").read_text())["rewards"]
        return
    trained = arguments[0] in TRAINER_COMMANDS
    if "--ckpt_path" in arguments:
        arguments = arguments[: arguments.index("--ckpt_path")]  # there is no checkpoint yet
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--print_config"] if trained else [arguments[0], "--help"])
    printed = capsys.readouterr()
    if not trained:
        # Configurations and what overrides them (options with a dot) are those of `fit`.
        own = [word for word in arguments if word.startswith("--") and word != "--config" and "." not in word]
        assert all(word in printed.out for word in own)
    assert stopped.value.code == 0, printed.err


@pytest.mark.parametrize("command", BENCHMARKS, ids=str)
def test_scripts_have_the_options_that_are_documented(command):
    path = ROOT / command.words[1]
    source = path.read_text(encoding="utf-8").split('"""', 2)[2]
    # The settings of some benchmarks are those of a package beside them.
    packages = [path.parent / name for name in re.findall(r"^from (\w+) import", source, re.MULTILINE)]
    source += "".join(file.read_text(encoding="utf-8") for package in packages for file in package.glob("*.py"))
    for option in (word for word in command.words[2:] if word.startswith("--")):
        assert re.search(rf"\b{re.escape(option.removeprefix('--'))}\b", source), f"{path.name} has no {option}"


def test_every_benchmark_is_documented():
    runnable = {path.name for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text()}
    assert runnable <= {command.words[1].removeprefix("benchmarks/") for command in BENCHMARKS}


@pytest.mark.parametrize("command", OTHER, ids=str)
def test_other_commands_are_those_of_installing_testing_and_this_project(command):
    known = ("pip", "pytest", "pre-commit", "ruff", "mypy", "mkdocs", "bash", "docker")
    assert command.words[0] in known or command.words[:2] == ["python", "-m"], command
    if command.words[:2] == ["python", "-m"]:
        assert find_spec(command.words[2]), command
    if command.words[0] == "bash":
        assert (ROOT / command.words[1]).is_file()


def test_extras_and_pinned_versions_of_the_install_commands_exist():
    extras = set(re.findall(r"^(\w+) = \[\"", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    pinned = set(re.findall(r"^(\w+==[\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    installs = [command for command in OTHER if command.words[:2] == ["pip", "install"]]
    assert installs
    for command in installs:
        for word in command.words[2:]:
            assert "==" not in word or word in pinned, f"{command}: {word} is not the version of constraints.txt"
            assert set(re.findall(r"\w+", "".join(re.findall(r"\[(.*)\]", word)))) <= extras, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page):
    text = page.read_text(encoding="utf-8")
    folders = "configs|vr1|callbacks|benchmarks|examples|docs|tests"
    for path in sorted(set(re.findall(rf"(?<![\w/.])(?:{folders})/[\w./]+", text))):
        assert (ROOT / path.rstrip(".")).exists() or "/reference/" in path, f"{page.name} names {path}"


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


def test_the_python_of_the_readme_trains(tmp_path, monkeypatch, capsys, tiny_model):
    [_, block] = blocks(README, "python")
    small = {
        "GRPOModule(": f"GRPOModule(policy=PolicySource(path={str(tiny_model)!r}), "
        "evaluation=Sampling(group_size=1, temperature=0.0, max_new_tokens=6), ",
        "max_new_tokens=160": "max_new_tokens=6",
        "train_scenes=400, val_scenes=64, test_scenes=8, batch_size=16": "train_scenes=2, val_scenes=2, test_scenes=2, "
        "batch_size=2, num_workers=0",
        "max_steps=20": "max_steps=1, accelerator='cpu'",
    }
    for text, other in small.items():
        assert block.count(text) == 1, text
        block = block.replace(text, other)
    monkeypatch.chdir(tmp_path)
    with mock.patch("sys.argv", ["notebook"]):
        exec(f"from vr1 import PolicySource\n{block}", {"__name__": "notebook"})
    assert "boxes_xyxy" in capsys.readouterr().out
    assert list(tmp_path.rglob("gallery/step_*.png"))


def test_own_data_from_python_trains(tmp_path, monkeypatch, tiny_model):
    import torch
    from lightning.pytorch import Trainer
    from PIL import Image

    from vr1 import GRPOModule, PolicySource, Sampling

    [block] = [block for block in blocks(ROOT / "docs/learn/your_data.md", "python") if "RecordDataModule" in block]
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (84, 112), "white").save(name)
    page = {"__name__": "own_data"}
    exec(block, page)
    module = GRPOModule(
        policy=PolicySource(path=str(tiny_model)),
        sampling=Sampling(group_size=2, max_new_tokens=4),
        evaluation=Sampling(group_size=1, temperature=0.0, max_new_tokens=4),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
    )
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, page["PhotoDataModule"](batch_size=1, num_workers=0))
    assert trainer.global_step == 1
    assert trainer.callback_metrics["val/boxes_per_image"] >= 0


def test_the_reward_of_the_page_counts_small_boxes(tmp_path):
    import numpy as np

    from vr1.matching import BoxMatcher
    from vr1.rewards import Criterion
    from vr1.types import Detections, Targets, as_boxes

    [(_, _, block)] = [found for found in named_blocks("python") if found[0].name == "add_reward.md"]
    page = {"__name__": "my_rewards"}
    exec(block, page)
    found = as_boxes([[0, 0, 10, 10], [50, 50, 150, 150]])
    answer = Detections(boxes_xyxy=found, labels=("cat",) * 2, scores=np.ones(2), well_formed=True, valid=True)
    true = as_boxes([[0, 0, 10, 10], [50, 50, 150, 150], [200, 200, 210, 210]])
    match = BoxMatcher()(answer, Targets(boxes_xyxy=true, labels=("cat",) * 3))
    term = page["SmallBoxes"]()
    assert term.score(match, Criterion()) == 0.5, "one of the two boxes below 32 x 32 pixels is found"
    assert page["SmallBoxes"](side=1.0).score(match, Criterion()) == 1.0


def test_the_answer_of_the_page_about_serving_is_read():
    [block] = [block for block in blocks(ROOT / "docs/how_to/export_and_serve.md", "python") if "family" in block]
    page = {}
    exec(block, page)
    assert page["question"].startswith("Locate every cat")
    assert page["boxes"].round(1).tolist() == [[9.9, 20.2, 59.6, 90.8]]


def test_a_line_of_recorded_answers_has_the_documented_fields():
    [block] = blocks(ROOT / "docs/how_to/score_answers.md", "json")
    assert json.loads(block).keys() == ANSWER.keys()
