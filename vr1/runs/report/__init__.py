"""The report of a run: one self-contained HTML page."""

from vr1.runs.report.page import build_page, write_report

__all__ = ["build_page", "write_report"]
