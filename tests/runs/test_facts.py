"""The facts that a run records about itself."""

import subprocess

from vr1.runs import run_facts
from vr1.runs.facts import given_settings


def test_versions_command_and_seed(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/vr1/__main__.py", "fit", "--config", "my file.yaml"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    facts = run_facts()
    assert facts["command"] == "python -m vr1 fit --config 'my file.yaml'"
    assert facts["seed"] == 7
    assert {"python", "torch", "lightning", "transformers"} <= facts["versions"].keys()


def test_state_of_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert run_facts()["git"] is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-q", "-b", "main"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    (tmp_path / "new").write_text("")
    git = run_facts()["git"]
    assert (len(git["commit"]), git["branch"], git["changed"]) == (40, "main", 1)


def test_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert run_facts()["git"] is None


def test_settings_that_were_given(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("trainer: {max_steps: 9}\nmodel: {class_path: my.Module, init_args: {seed: 1}}\n")
    second.write_text("model: {init_args: {seed: 2}}\n")
    damaged = tmp_path / "c.yaml"
    damaged.write_text("a: [")
    arguments = ["fit", "--config", str(first), f"--config={second}", "--config", str(damaged), "--config", "missing"]
    arguments += ["--trainer.max_steps", "5", "--model.lora.rank=4", "--trainer.fast_dev_run", "--data.root", "-1"]
    assert given_settings(arguments) == {
        "trainer.max_steps": "5",
        "model": "my.Module",
        "model.seed": "2",
        "model.lora.rank": "4",
        "trainer.fast_dev_run": "",
        "data.root": "-1",
    }
