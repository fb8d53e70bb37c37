"""Run folders: what a training leaves behind, read again for reports and comparisons."""

from vr1.runs.facts import run_facts
from vr1.runs.figures import PANELS, Panel, panels_of
from vr1.runs.folder import Run, differing, find_run, flat_settings, read_run

__all__ = ["PANELS", "Panel", "Run", "differing", "find_run", "flat_settings", "panels_of", "read_run", "run_facts"]
