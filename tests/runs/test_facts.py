"""The facts that a run records about itself."""

import subprocess

from vr1.runs import run_facts


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
