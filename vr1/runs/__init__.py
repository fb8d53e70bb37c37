"""Run folders: what a training leaves behind, read again for reports and comparisons."""

from vr1.runs.facts import run_facts
from vr1.runs.folder import Run, find_run, read_run
from vr1.runs.panels import PANELS, Panel, panels_of
from vr1.runs.settings import differing, flat_settings

__all__ = ["PANELS", "Panel", "Run", "differing", "find_run", "flat_settings", "panels_of", "read_run", "run_facts"]
