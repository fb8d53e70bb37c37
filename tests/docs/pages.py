"""The README and the pages of the documentation, their code blocks and their commands."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


class Command(NamedTuple):
    """One command of a page.

    Attributes:
        page: the page, relative to the repository.
        words: the words of the command, without environment variables before it.
    """

    page: str
    words: list[str]

    def __str__(self):
        return f"{self.page}: {' '.join(self.words)}"


def blocks(page, language):
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands(pages=PAGES):
    """Every command in the bash blocks of some pages, each once."""
    found = {}
    for page in pages:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split("&&"):
                    if words := shlex.split(part, comments=True):
                        found.setdefault(tuple(words), Command(str(page.relative_to(ROOT)), words))
    return list(found.values())


def named_blocks(language):
    """The blocks of all pages that begin with a comment of their file's name, as ``# my_reward.yaml``."""
    return [
        (page, match[1], block)
        for page in PAGES
        for block in blocks(page, language)
        if (match := re.match(r"# ([\w.]+)\n", block))
    ]
