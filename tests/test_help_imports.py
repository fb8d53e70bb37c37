"""Help is there at once: what only training needs is not imported for it."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "lightning", "peft", "torchmetrics", "matplotlib", "numpy", "wandb")
SCRIPT = f"""
import sys
from vr1.cli import main

arguments = sys.argv[1:]
try:
    status = main(arguments)
except SystemExit as stop:
    status = stop.code
assert not status, status
found = [name for name in {HEAVY!r} if name in sys.modules]
assert not found, f"vr1 {{' '.join(arguments)}} imports {{found}}"
"""


@pytest.mark.parametrize("command", [None, "score", "check", "export", "plan", "sweep", "compare", "report", "doctor"])
def test_help_of_what_needs_no_trainer_imports_nothing_that_takes_time(command):
    arguments = [command, "--help"] if command else ["--help"]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--help" in done.stdout


def test_the_check_notices_an_import():
    done = subprocess.run([sys.executable, "-c", "import torch\n" + SCRIPT, "--help"], capture_output=True, text=True)
    assert "imports ['torch'" in done.stderr
