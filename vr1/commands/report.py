"""``python -m vr1 report``: the report of a run, made from the files in its folder."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from vr1.errors import UserError, report_user_error


def main(argv: Sequence[str] | None = None) -> int:
    """Write ``report.html`` into each run folder.

    Args:
        argv: arguments after ``report``; None takes those of the process.

    Returns:
        Exit status: 0, or 2 after an error message.
    """
    parser = ArgumentParser(allow_abbrev=False, prog="vr1 report", description="Write report.html into run folders.")
    parser.add_argument("runs", nargs="+", type=str, help="Run folders, such as runs/demo/version_0.")
    runs = parser.parse_args(argv).runs
    # Imported here, so that --help does not wait for matplotlib.
    from vr1.runs.report.page import write_report

    try:
        for run in runs:
            print(write_report(Path(run)))
    except (UserError, OSError) as error:
        return report_user_error(parser.prog, error)
    return 0
