"""Run folders: the files that a training writes, read again for reports and comparisons."""

from vr1.runs.facts import run_facts
from vr1.runs.folder import Run, differing, find_run, flat_settings, read_run

__all__ = ["Run", "differing", "find_run", "flat_settings", "read_run", "run_facts"]
