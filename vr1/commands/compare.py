"""``python -m vr1 compare``: several runs side by side, as a table and as curves."""

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from vr1.errors import UserError
from vr1.runs.folder import Run, differing, flat_settings, read_run
from vr1.runs.tables import markdown_table

_MOST_SETTINGS = 40


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Exit status: 0, or 2 after a message that says what is wrong.
    """
    parser = ArgumentParser(allow_abbrev=False, prog="vr1 compare", description="Show several runs side by side.")
    parser.add_argument("runs", nargs="+", type=str, help="Run folders, such as runs/demo/version_0.")
    parser.add_function_arguments(compare, skip={"runs"})
    arguments = parser.parse_args(argv).as_dict()
    try:
        print(compare(**arguments))
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


def compare(runs: list[str], out: str = "runs/compare", prefix: str = "val/") -> str:
    """Compare runs: ``compare.md`` and ``compare.png`` in a folder.

    Args:
        runs: two or more run folders.
        out: Folder of the table and the curves.
        prefix: Metrics of the table: those whose names begin so.

    Returns:
        The table as Markdown.

    Raises:
        UserError: if there are fewer than two runs, one is none, or none of them has a metric of the prefix.
    """
    # Here, so that --help does not wait for matplotlib.
    from vr1.runs.figures import draw_runs

    if len(runs) < 2:
        raise UserError(f"{runs[0]} is the only run; give at least two")
    read = [read_run(Path(run)) for run in runs]
    if doubled := [run for index, run in enumerate(read) if run.folder in [other.folder for other in read[:index]]]:
        raise UserError(f"{doubled[0].folder} is given twice; give each run once")
    names = names_of([run.folder for run in read])
    text = markdown(names, read, prefix)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.md").write_text(text, encoding="utf-8")
    picture = draw_runs(names, read)
    if picture is not None:
        picture.save(folder / "compare.png")
    return f"{text}\n{folder / 'compare.md'}, compare.png"


def names_of(folders: Sequence[Path]) -> list[str]:
    """Short names that tell folders apart: as many of the last parts of their paths as that takes.

    Example:
        >>> names_of([Path("runs/a/version_0"), Path("runs/b/version_0")])
        ['a/version_0', 'b/version_0']
    """
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts))):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def markdown(names: Sequence[str], runs: Sequence[Run], prefix: str) -> str:
    """First, best and last value of each metric, and the settings in which the runs differ.

    Raises:
        UserError: if no run has a metric of the prefix.
    """
    metrics = list(dict.fromkeys(name for run in runs for name in sorted(run.series) if name.startswith(prefix)))
    if not metrics:
        there = sorted({name.split("/")[0] + "/" for run in runs for name in run.series})
        raise UserError(f"no metric begins with {prefix}; give another --prefix, of {', '.join(there)}")
    rows = [["optimizer steps", *(str(_steps(run)) for run in runs)]]
    rows += [[f"{name}: first → last (highest)", *(_course(run, name) for run in runs)] for name in metrics]
    text = markdown_table(["metric", *names], rows) + "\n"
    changed = differing([flat_settings(run.settings) for run in runs])
    if changed:
        shown = [[name, *map(_short, values)] for name, values in list(changed.items())[:_MOST_SETTINGS]]
        text += "\n" + markdown_table(["setting", *names], shown) + "\n"
    if len(changed) > _MOST_SETTINGS:
        text += f"\n{len(changed) - _MOST_SETTINGS} further settings differ.\n"
    return text


def _steps(run: Run) -> int:
    return max((points[-1][0] for points in run.series.values() if points), default=0)


def _course(run: Run, name: str) -> str:
    points = run.series.get(name)
    if not points:
        return "-"
    step, highest = max(points, key=lambda point: point[1])
    return f"{points[0][1]:.4f} → {points[-1][1]:.4f} ({highest:.4f} at {step})"


def _short(value: object) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
