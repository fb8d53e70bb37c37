"""What is needed to repeat a run: its command, seed, package versions and the state of the source code."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from vr1.runs.folder import flat_settings

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
        ``git`` (``commit``, ``branch`` and the number of ``changed`` files; None outside a repository), and ``given``
        (`given_settings` of the command line).

    Example:
        >>> sorted(run_facts())
        ['command', 'git', 'given', 'seed', 'started', 'versions']
    """
    seed = os.environ.get("PL_GLOBAL_SEED")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "seed": int(seed) if seed is not None and seed.lstrip("-").isdigit() else None,
        "versions": {"python": platform.python_version(), **versions(PACKAGES)},
        "git": _git(Path.cwd()),
        "given": given_settings(sys.argv[1:]),
    }


def given_settings(arguments: Sequence[str]) -> dict[str, str]:
    """The settings that configurations and a command line set, by their names; the later ones win.

    Args:
        arguments: of a command of vr1. A file that cannot be read is left out.

    Example:
        >>> given_settings(["fit", "--model.sampling.group_size", "16", "--out=runs/a"])
        {'model.sampling.group_size': '16', 'out': 'runs/a'}
    """
    given: dict[str, str] = {}
    remaining = list(arguments)
    while remaining:
        name, is_assigned, value = remaining.pop(0).partition("=")
        if not name.startswith("--"):
            continue
        if not is_assigned and remaining and not remaining[0].startswith("--"):
            value = remaining.pop(0)
        if name != "--config":
            given[name[2:]] = value
            continue
        with suppress(OSError, ValueError, yaml.YAMLError):
            settings = flat_settings(yaml.safe_load(Path(value).read_text(encoding="utf-8")) or {})
            # A later file may set an argument of a class without naming the class again.
            given |= {key.replace(".init_args", ""): str(setting) for key, setting in settings.items()}
    return given


def _command() -> str:
    """The command line as a user would type it."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py" and program.parent.name == "vr1":
        return shlex.join(["python", "-m", "vr1", *sys.argv[1:]])
    return shlex.join([program.name, *sys.argv[1:]])


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of the packages that are installed (vr1 itself is not, in a clone).

    Args:
        packages: names of distributions.

    Returns:
        Version by name, without the packages that are not installed.

    Example:
        >>> list(versions(["pillow", "no such package"]))
        ['pillow']
    """
    installed = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed


def _git(folder: Path) -> dict[str, Any] | None:
    commit = _run_git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = (_run_git(folder, "status", "--porcelain") or "").splitlines()
    return {"commit": commit, "branch": _run_git(folder, "rev-parse", "--abbrev-ref", "HEAD"), "changed": len(changed)}


def _run_git(folder: Path, *arguments: str) -> str | None:
    """The output of a git command; None without git or a repository, or after a timeout."""
    # Without optional locks, so that it never blocks another git command in the repository.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return finished.stdout.strip()
