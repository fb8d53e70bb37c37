"""Workflows, issue forms, citation and image: what they name exists, and they agree with the project."""

import os
import re
import tomllib

import pytest
import yaml

from tests.docs.pages import ROOT
from vr1 import __version__

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def steps(workflow):
    """The shell commands of a workflow."""
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_steps_of_workflows_are_scripts_that_exist(workflow):
    for command in steps(workflow):
        if command.startswith((".ci/", "tests/")):
            script = ROOT / command
            assert os.access(script, os.X_OK), f"{command} cannot be executed"
            assert script.read_text().startswith("#!/usr/bin/env bash\n")
            assert "set -euo pipefail" in script.read_text()
        else:
            assert command.split()[0] in {"pip", "test", "gh"}, f"{command} belongs in a script of .ci"


def test_every_script_of_ci_is_a_step_of_the_checks():
    assert {f".ci/{script.name}" for script in (ROOT / ".ci").iterdir()} <= set(steps(GITHUB / "workflows/checks.yml"))


def test_the_checks_run_on_every_supported_version_of_python():
    jobs = yaml.safe_load((GITHUB / "workflows/checks.yml").read_text())["jobs"]
    versions = jobs["tests"]["strategy"]["matrix"]["python"]
    assert versions == ["3.11", "3.12"], "as text: YAML reads 3.10 as 3.1"
    assert PROJECT["requires-python"] == f">={versions[0]}"
    readme = (ROOT / "README.md").read_text()
    assert f"Python {versions[0]} or {versions[1]}" in readme


@pytest.mark.parametrize("form", sorted((GITHUB / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.name)
def test_issue_forms_are_complete(form):
    document = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= document.keys()
    names = [field["id"] for field in document["body"] if field["type"] != "markdown"]
    assert names
    assert len(set(names)) == len(names)
    for path in re.findall(r"`((?:docs|benchmarks)/[\w./]+|\w+\.md)`", form.read_text()):
        assert (ROOT / path).exists(), f"{form.name} names {path}"


def test_the_citation_is_of_the_newest_release_in_the_changelog():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changelog = (ROOT / "CHANGELOG.md").read_text()
    version, day = re.findall(r"^## \[(\d[\w.]*)\] - ([\d-]+)$", changelog, re.MULTILINE)[0]
    assert (citation["version"], str(citation["date-released"])) == (version, day)
    assert citation["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert __version__.removesuffix(".dev0") >= version


def test_the_image_copies_files_that_exist_and_are_not_ignored():
    text = (ROOT / "Dockerfile").read_text()
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert re.search(r"^FROM nvidia/cuda:[\d.]+-runtime-\w+[\d.]+$", text, re.MULTILINE), "the base has a full tag"
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists(), f"the Dockerfile copies {name}"
            assert name.split("/")[0] in allowed, f"{name} is left out by .dockerignore"
    for example in re.findall(r"--config (\S+)", text):
        assert (ROOT / example).is_file()


def test_the_security_policy_is_that_of_the_code():
    code = "\n".join(path.read_text() for folder in ("vr1", "callbacks") for path in (ROOT / folder).rglob("*.py"))
    assert not re.search(r"trust_remote_code\s*=\s*True|pickle\.loads?\(|[^.\w]eval\(\w", code)
