"""What one must know of a run to repeat it: command, seed, versions, state of the source code."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "vr1",
    "torch",
    "torchvision",
    "lightning",
    "transformers",
    "peft",
    "bitsandbytes",
    "torchmetrics",
    "pycocotools",
    "faster-coco-eval",
    "wandb",
)
_GIT_SECONDS = 10


def run_facts() -> dict[str, Any]:
    """The facts of this process, in plain types.

    Returns:
        ``started`` (UTC, ISO 8601), ``command``, ``seed`` (None where nothing was seeded), ``versions`` by package and
        ``git`` (``commit``, ``branch`` and the number of ``changed`` files; None outside a repository).

    Example:
        >>> sorted(run_facts())
        ['command', 'git', 'seed', 'started', 'versions']
    """
    seed = os.environ.get("PL_GLOBAL_SEED")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "seed": int(seed) if seed is not None and seed.lstrip("-").isdigit() else None,
        "versions": {"python": platform.python_version(), **versions(PACKAGES)},
        "git": _git(Path.cwd()),
    }


def _command() -> str:
    """The words of the command line, as one would type them."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py" and program.parent.name == "vr1":
        return shlex.join(["python", "-m", "vr1", *sys.argv[1:]])
    return shlex.join([program.name, *sys.argv[1:]])


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed versions of packages; those that are not installed (vr1 itself in a clone, say) are left out.

    Example:
        >>> list(versions(["pillow", "no such package"]))
        ['pillow']
    """
    found = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _git(folder: Path) -> dict[str, Any] | None:
    commit = _ask_git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = (_ask_git(folder, "status", "--porcelain") or "").splitlines()
    return {"commit": commit, "branch": _ask_git(folder, "rev-parse", "--abbrev-ref", "HEAD"), "changed": len(changed)}


def _ask_git(folder: Path, *words: str) -> str | None:
    """What git says, or None where there is no git, no repository, or no answer in time."""
    # Without optional locks: asking must not get in the way of what else happens in the repository.
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()
