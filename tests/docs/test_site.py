"""The documentation builds without a warning, and what is generated from the code is complete."""

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import callbacks
from tests.docs.pages import PAGES, README, ROOT
from vr1 import _MODULE_OF, families
from vr1.cli import COMMANDS, TRAINER_COMMANDS

DOCS = ROOT / "docs"
SPEC = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
generate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(generate)


@pytest.fixture(scope="module")
def made():
    """The generated pages by path."""
    return generate.pages()


def without_code(text):
    """A page without its code blocks."""
    return re.sub(r"^(`{3,}).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text):
    """The anchors of a page's headings, as GitHub and MkDocs make them of plain words."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page, made):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        generated = made.get(file.relative_to(DOCS).as_posix()) if DOCS in file.parents else None
        assert file.exists() or (generated and page != README), f"{page.name} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(generated or file.read_text(encoding="utf-8")), f"{page.name} links to {target}"


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        assert f": {page.relative_to(DOCS).as_posix()}\n" in text, f"{page} is missing in mkdocs.yml"


@pytest.mark.parametrize("page", [page for page in PAGES if page.is_relative_to(DOCS)], ids=lambda page: page.name)
def test_pages_name_their_limitations(page):
    without = {"index.md", "troubleshooting.md", "settings.md"}
    assert page.name in without or "## Limitations" in page.read_text(encoding="utf-8")


def test_every_configuration_is_listed_with_its_command_and_settings(made):
    page = made["reference/configs.md"]
    for path in (ROOT / "configs").rglob("*.yaml"):
        name = re.escape(path.relative_to(ROOT / "configs").as_posix())
        [section] = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
        assert "```bash\n" in section, f"{path} shows no command"
        shown = "\n".join(line[4:] for line in section.split("```yaml\n")[-1].split("    ```")[0].splitlines())
        assert yaml.safe_load(shown) == yaml.safe_load(path.read_text()), f"{path}: its settings are not those shown"


def test_every_command_is_listed_with_its_help(made):
    page = made["reference/commands.md"]
    for command in [*COMMANDS, *TRAINER_COMMANDS]:
        assert f"\n## {command}\n" in page
        assert f"usage: vr1 {command}" in page
    assert "--completions FILE" in page
    assert "--trainer.max_steps" in page


def test_every_family_is_listed_and_its_answer_reads_back(made):
    page = made["reference/families.md"]
    for name in families.__all__:
        family = getattr(families, name)
        if not (isinstance(family, type) and issubclass(family, families.Family)) or name in ("Family", "CustomFamily"):
            continue
        [_, answer] = re.findall(r"````text\n(.*?)\n````", page.split(f"\n## {name}\n")[1], re.DOTALL)[:2]
        read = family().read(answer)
        assert (read.follows_template, read.labels) == (True, ("cat",)), name
        size = (640, 480)
        box = family().to_image(read.boxes, size, (644, 476))[0].tolist()
        assert box == pytest.approx([64, 96, 320, 360], abs=1), name


def test_every_public_name_is_in_the_reference(made):
    text = "\n".join(made.values())
    for name, module in _MODULE_OF.items():
        value = getattr(importlib.import_module(module), name)
        if isinstance(value, type):
            assert f"::: {value.__module__}.{name}\n" in text, f"{name} is on no page"
    for name in callbacks.__all__:
        assert f"::: {getattr(callbacks, name).__module__}.{name}\n" in text, f"{name} is on no page"


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None,
    reason='mkdocs is not installed: pip install -e ".[docs]"',
)
def test_the_site_builds_without_a_warning(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = {path.parent.relative_to(tmp_path / "site") for path in (tmp_path / "site").rglob("index.html")}
    assert {Path(), Path("learn/quickstart"), Path("reference/configs"), Path("reference/api/rewards")} <= pages
    html = (tmp_path / "site/reference/api/rewards/index.html").read_text()
    assert "vr1.rewards.base.RewardTerm" in html
    assert ":class:" not in html
    # Nothing is fetched from elsewhere when a page is read.
    outside = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?:[^\"]+)", html)
    assert not outside


def test_stored_results_are_those_that_the_pages_quote(made):
    """The means of the demo's rows in the README, from the stored runs."""
    stored = json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text())["runs"]
    readme = (ROOT / "README.md").read_text()
    for method, row in (
        ("GRPO", "Vision-R1 (GRPO), credit for the whole answer"),
        ("GRPO box credit", "credit for each box"),
        ("GRPO box credit, average", "the demo: and the average of the weights"),
        ("GRPO box credit, average, SFT at once", "the demo, and SFT at once (`--model.supervised.weight 0.3`)"),
    ):
        ends = [steps["120"] for steps in stored[method].values()]
        means = [
            sum(end[name] for end in ends) / 3 for name in ("val/map", "val/map_50", "val/map_75", "val/map_ranked")
        ]
        cells = next(line for line in readme.splitlines() if line.startswith(f"| {row} |")).split("|")[2:6]
        assert [float(cell.split()[0]) for cell in cells] == pytest.approx(means, abs=6e-4)
    assert made["results/stored.md"].count("GRPO box credit, average |") == 3
